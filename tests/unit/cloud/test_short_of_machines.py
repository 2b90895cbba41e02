"""A pool's rungs on a cloud that is short of machines: the next rung gives the node, and the first one comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.manifests.autoscaler import priority_expander
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.plan import Rung
from tests.unit.aws import builders
from tests.unit.cloud.conftest import BUCKET, Fleet, made, subnets_in
from tools.cloud.server import Listening
from tools.kubernetes.autoscaler import Autoscaler, PriorityExpander

ZONES = ("us-west-2a", "us-west-2b")
TYPES = ["g6.xlarge", "g6.2xlarge"]
LADDER = {
    "name": "l4",
    "accelerator": "L4",
    "maxNodes": 4,
    "instanceTypes": TYPES,
    "purchase": ["reservation", "spot", "on-demand"],
    "capacityReservationId": "cr-0123456789abcdef0",
    "capacityReservationZone": "us-west-2b",
    "fallback": [{"accelerator": "A10G", "instanceTypes": ["g5.xlarge"]}],
}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    planned, _ = builders.planned(tmp_path, mirror={"bucket": BUCKET}, pools=[LADDER])
    return planned


@pytest.fixture
def fleet(account: Listening, plan: Plan) -> Fleet:
    return made(account, plan)


@pytest.fixture
def groups(fleet: Fleet, plan: Plan) -> dict[str, str]:
    return groups_of(fleet, plan)


def groups_of(fleet: Fleet, plan: Plan) -> dict[str, str]:
    """The Auto Scaling groups of the pool's node groups by `RUNG-ZONE`, as `infra/aws` has the groups made."""
    subnets = dict(zip(ZONES, subnets_in(fleet.cloud, *ZONES), strict=True))
    places = [(rung, zone) for rung in plan.pools[0].rungs for zone in rung.zones or ZONES]
    return {
        f"{rung.group}-{zone[-1]}": _group(fleet, rung, zone[-1], subnets[zone], number)
        for number, (rung, zone) in enumerate(places)
    }


def _group(fleet: Fleet, rung: Rung, letter: str, subnet: str, number: int) -> str:
    eks, ec2 = fleet.cloud.client("eks"), fleet.cloud.client("ec2")
    name = f"{rung.group}-{letter}-20261129120000000000{number:06x}"
    data: dict[str, Any] = {"MetadataOptions": {"HttpTokens": "required"}}
    if rung.capacity_reservation_id:
        target = {"CapacityReservationId": rung.capacity_reservation_id}
        data["CapacityReservationSpecification"] = {"CapacityReservationTarget": target}
    template = ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)["LaunchTemplate"]
    eks.create_nodegroup(
        clusterName=fleet.cluster,
        nodegroupName=name,
        subnets=[subnet],
        nodeRole=f"arn:aws:iam::{builders.ACCOUNT}:role/node",
        scalingConfig={"minSize": 0, "desiredSize": 0, "maxSize": 4},
        instanceTypes=list(rung.instance_types),
        capacityType="SPOT" if rung.purchase == "spot" else "ON_DEMAND",
        launchTemplate={"id": template["LaunchTemplateId"], "version": "1"},
    )
    found = eks.describe_nodegroup(clusterName=fleet.cluster, nodegroupName=name)["nodegroup"]
    return str(found["resources"]["autoScalingGroups"][0]["name"])


@pytest.fixture
def autoscaler(fleet: Fleet, plan: Plan, groups: dict[str, str]) -> Iterator[Autoscaler]:
    scaling = fleet.cloud.client("autoscaling", fleet.credentials("cluster-autoscaler"))
    yield Autoscaler(PriorityExpander(priority_expander(plan)), scaling, groups.values())


def named(groups: dict[str, str], *found: str | None) -> list[str]:
    """`RUNG-ZONE` of Auto Scaling groups."""
    names = {group: name for name, group in groups.items()}
    return [names[one] for one in found if one is not None]


def test_where_two_rungs_are_short_the_third_gives_the_node(
    fleet: Fleet, groups: dict[str, str], autoscaler: Autoscaler
) -> None:
    """One purchase was one bet, and the model waited. The order is the stack file's, in every zone of a rung first."""
    rules = fleet.cloud.cloud.rules
    assert named(groups, autoscaler.scale_up()[1]) == ["l4_odcr-b"], "what is paid for anyway comes first"

    rules.short_of(("g6.xlarge", "*", "reservation"), *((kind, "*", "spot") for kind in TYPES))
    failed, gave = autoscaler.scale_up()
    assert named(groups, *failed) == ["l4_odcr-b", "l4_spot-a", "l4_spot-b"]
    assert named(groups, gave) == ["l4-a"]

    rules.short_of(("g6.xlarge", "*", "reservation"), *((kind, "us-west-2a") for kind in TYPES))
    assert named(groups, autoscaler.scale_up()[1]) == ["l4-b"], "a zone without machines does not end the ladder"

    rules.short_of()
    autoscaler.forgive()  # after 5 to 30 minutes
    assert named(groups, autoscaler.scale_up()[1]) == ["l4_odcr-b"], "the first rung is tried again"


def test_where_the_pools_card_is_not_to_be_had_another_gives_the_node(
    fleet: Fleet, groups: dict[str, str], autoscaler: Autoscaler
) -> None:
    fleet.cloud.cloud.rules.short_of(*((kind, "*") for kind in TYPES))
    failed, gave = autoscaler.scale_up()
    assert named(groups, *failed) == ["l4_odcr-b", "l4_spot-a", "l4_spot-b", "l4-a", "l4-b"]
    assert named(groups, gave) == ["l4_a10g-a"]


def test_a_group_that_fails_again_waits_twice_as_long(fleet: Fleet, plan: Plan, groups: dict[str, str]) -> None:
    fleet.cloud.cloud.rules.short_of(*((kind, "*") for kind in TYPES))
    now = [0.0]
    scaling = fleet.cloud.client("autoscaling", fleet.credentials("cluster-autoscaler"))
    one = [groups["l4-a"]]
    autoscaler = Autoscaler(PriorityExpander(priority_expander(plan)), scaling, one, lambda: now[0])
    tried = []
    for now[0] in range(0, 7200, 60):
        tried += [now[0] // 60] * len(autoscaler.scale_up()[0])
    assert tried == [0, 5, 15, 35, 65, 95], "5, 10 and 20 minutes, then 30"


def test_a_rung_is_short_only_when_all_its_types_are(
    fleet: Fleet, groups: dict[str, str], autoscaler: Autoscaler
) -> None:
    fleet.cloud.cloud.rules.short_of(("g6.xlarge", "*"))
    failed, gave = autoscaler.scale_up()
    assert named(groups, *failed) == ["l4_odcr-b"], "a reservation is of the first type alone"
    assert named(groups, gave) == ["l4_spot-a"]


def test_the_autoscaler_needs_no_more_than_its_policy_for_a_ladder(
    fleet: Fleet, groups: dict[str, str], autoscaler: Autoscaler
) -> None:
    autoscaler.scale_up()
    assert fleet.used("cluster-autoscaler") == {
        "autoscaling:DescribeAutoScalingGroups",
        "autoscaling:DescribeScalingActivities",
        "autoscaling:SetDesiredCapacity",
    }
