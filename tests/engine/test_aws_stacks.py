"""The shipped stack files: `up` of dev, staging and prod on the emulated AWS, compared with their plans."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelfleet.infra.planning import Plan
from tests.engine.aws_account import Account
from tests.engine.aws_fleet import FleetProject
from tests.engine.conftest import Emulator

ZONES = {"dev": 2, "staging": 3, "prod": 3}
NATS = {"dev": 1, "staging": 1, "prod": 3}


LONG = pytest.mark.long(why="a life more; prod has what these two have")


@pytest.fixture(params=[pytest.param("dev", marks=LONG), pytest.param("staging", marks=LONG), "prod"])
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, emulator: Emulator
) -> Iterator[FleetProject]:
    project = FleetProject(tmp_path_factory.mktemp(request.param), emulator, stack=request.param)
    project.copy_stack_file(request.param)
    yield project
    assert not project.living_processes()


def test_a_shipped_stack_comes_up_as_planned_stays_and_goes(fleet: FleetProject, emulator: Emulator) -> None:
    account, plan, name = Account(emulator, fleet.region), fleet.plan(), f"modelfleet-{fleet.stack}"
    yours = account.everything()
    assert yours == ["modelfleet-serving"], "the image that the stack file names, and nothing else yet"
    fleet.up()
    _groups_are_the_plans(account, plan, name)
    cluster = account.cluster(name)
    cidrs = list(plan.config.cluster.public_access_cidrs)
    assert cluster["resourcesVpcConfig"]["endpointPublicAccess"] is bool(cidrs)
    assert cluster["resourcesVpcConfig"].get("publicAccessCidrs", []) == cidrs
    assert cluster["deletionProtection"] is (fleet.stack == "prod")
    assert len(cluster["resourcesVpcConfig"]["subnetIds"]) == 2, "EKS would refuse a zone more"
    assert len(account.zone_groups(name)["system"]) == ZONES[fleet.stack]
    nats = [n for n in account.ec2.describe_nat_gateways()["NatGateways"] if n["State"] != "deleted"]
    assert len(nats) == NATS[fleet.stack]
    assert emulator.buckets() >= {plan.bucket.name}
    assert set(fleet.up().changes) == {"same"}
    if fleet.stack == "prod":
        _protection_holds_until_it_is_taken_off(fleet, account, name)
    fleet.destroy()
    assert account.everything() == yours


def _groups_are_the_plans(account: Account, plan: Plan, cluster: str) -> None:
    groups = account.node_groups(cluster)
    assert set(groups) == {"system", *(pool.name for pool in plan.node_groups)}
    for pool in plan.pools:
        group = groups[pool.name]
        assert group["labels"] == dict(pool.rungs[0].labels), pool.name
        assert group["taints"] == [{"key": "nvidia.com/gpu", "value": "true", "effect": "NO_SCHEDULE"}], pool.name
        assert group["instanceTypes"] == list(pool.instance_types), pool.name
        sizes = {"minSize": pool.floor_nodes, "desiredSize": pool.floor_nodes, "maxSize": pool.max_nodes}
        assert group["scalingConfig"] == sizes, pool.name
        assert group["capacityType"] == {"spot": "SPOT", "on-demand": "ON_DEMAND"}[pool.purchases], pool.name


def _protection_holds_until_it_is_taken_off(fleet: FleetProject, account: Account, cluster: str) -> None:
    protected = {resource["type"] for resource in fleet.resources() if resource.get("protect")}
    assert protected == {"aws:eks/cluster:Cluster", "aws:kms/key:Key", "aws:s3/bucket:Bucket"}
    text = fleet.root.joinpath("stacks", f"Pulumi.{fleet.stack}.yaml")
    text.write_text(text.read_text().replace("deletionProtection: true", "deletionProtection: false"))
    fleet.up()
    assert account.cluster(cluster)["deletionProtection"] is False
