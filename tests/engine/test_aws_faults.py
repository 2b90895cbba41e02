"""AWS calls that fail, throttle or never come back: the next `pulumi up` finishes; nothing is made twice or lost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest

from modelfleet.cli.pulumi_lock import clear_dead_locks
from modelfleet.infra.aws.fleet import AwsFleet
from tests.engine.aws_account import Account
from tests.engine.aws_fleet import REGION, FleetProject, model, stack_of
from tests.engine.conftest import Emulator
from tests.engine.mocked_engine import FailEachOnce, MockedEngine
from tests.waiting import wait_until
from tools.cloud.app import SHORTAGE, SLOW

#: pulumi_aws warns about its own old names when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*has been deprecated in favor of.*:DeprecationWarning")

CLUSTER = "modelfleet-test"
POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.xlarge"]}
STACK = stack_of(pools=[POOL], network={"zones": 2, "interfaceEndpoints": True})
MODELS = {"org--m": model("org/m", "L4", s3_mirror_config={"bucket_uri": "s3://company/m"})}


@pytest.fixture
def fleet(tmp_path: Path, emulator: Emulator) -> Iterator[FleetProject]:
    emulator.restart()  # a failed try may have left its fleet
    project = FleetProject(tmp_path, emulator)
    project.files(STACK, MODELS)
    yield project
    assert not project.living_processes()


@pytest.fixture
def account(emulator: Emulator) -> Account:
    return Account(emulator, REGION)


def _summary(account: Account) -> dict[str, Any]:
    """The account in numbers and settings that do not depend on ids."""
    groups = account.node_groups(CLUSTER)
    roles = sorted(role["RoleName"] for role in account.iam.list_roles()["Roles"])
    return {
        "things": len(account.everything()),
        "roles": roles,
        "statements": {
            role: re.sub(r"key/[0-9a-f-]{36}", "key", json.dumps(account.statements(role))) for role in roles
        },
        "sizes": {
            pool: [g["scalingConfig"] for g in own.values()] for pool, own in account.zone_groups(CLUSTER).items()
        },
        "groups": {pool: (group["labels"], group["taints"]) for pool, group in groups.items()},
        "updates": {pool: (group["updateConfig"], group["nodeRepairConfig"]) for pool, group in groups.items()},
        "tags": {pool: account.scaling_tags(group) for pool, group in groups.items()},
        "cluster": {key: account.cluster(CLUSTER)[key] for key in ("accessConfig", "logging", "version")},
        "parts": account.parts(CLUSTER),
    }


def _make(project: FleetProject, engine: MockedEngine) -> None:
    """Runs the program once, with `engine` in place of Pulumi's."""
    plan = project.plan()
    archive = project.folder / "code.zip"
    archive.write_bytes(b"code")
    engine.run(lambda: AwsFleet("aws", plan, code=pulumi.FileAsset(str(archive))))


def test_every_single_call_of_a_fleet_may_fail_once(
    fleet: FleetProject, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PATH"):
        monkeypatch.setenv(name, fleet.environ[name])
    assert account.everything() == []
    smooth = MockedEngine(REGION)
    _make(fleet, smooth)
    wanted = _summary(account)
    smooth.destroy()
    assert account.everything() == []

    faults = FailEachOnce()
    rough = MockedEngine(REGION, faults)
    _make(fleet, rough)
    assert len(faults.failed) > 100, "most calls were never made to fail"
    assert rough.half_made >= 5, "almost no resource was ever left half made"
    found = _summary(account)
    for part in wanted:
        assert found[part] == wanted[part], part
    rough.destroy()
    assert account.everything() == [], "something was made twice and the state does not know it"


@pytest.mark.long(why="five ups more than where each call fails once")
@pytest.mark.timeout(1200)
def test_a_fleet_that_is_stopped_in_five_ways_is_finished_in_the_end(
    fleet: FleetProject, account: Account, emulator: Emulator
) -> None:
    """One fleet on the real engine; each way resumes where the one before stopped."""
    _a_failed_call_stops_the_engine_with_its_own_words(fleet)
    _throttling_loses_nothing_that_was_made(fleet)
    _slow_answers_are_waited_for_and_no_machines_end_a_run_with_ec2s_words(fleet, account, emulator)
    _what_a_killed_up_made_without_knowing_it_is_mended_as_the_docs_say(fleet, account)
    _an_up_that_was_killed_before_a_call_went_out_is_finished_by_the_next(fleet, account)


def _a_failed_call_stops_the_engine_with_its_own_words(broken: FleetProject) -> None:
    broken.faults({"at": 25, "code": "InternalFailure"})
    run = broken.up("--parallel", "4", check=False)
    assert run.code != 0
    assert "InternalFailure: scripted failure of call 25" in run.text
    assert "Traceback" not in run.text
    assert len(broken.resources()) > 10, "what was made before the failure is not in the state"


def _throttling_loses_nothing_that_was_made(broken: FleetProject) -> None:
    before = {resource["urn"]: resource.get("id") for resource in broken.resources()}
    broken.faults({"first": 12, "code": "ThrottlingException"})
    run = broken.up("--parallel", "4", check=False)
    assert run.code != 0
    assert "ThrottlingException" in run.text
    assert "Traceback" not in run.text
    after = {resource["urn"]: resource.get("id") for resource in broken.resources()}
    assert before.items() <= after.items(), "a later run lost or made anew what an earlier one had made"


def _slow_answers_are_waited_for_and_no_machines_end_a_run_with_ec2s_words(
    broken: FleetProject, account: Account, emulator: Emulator
) -> None:
    """EC2 has none of the system nodes' type in one zone. EKS never mends such a group, so the preview says what to do."""
    broken.faults(None)
    emulator.switch(SLOW, {"eks:CreateCluster": 8})
    emulator.switch(SHORTAGE, [["m7i.xlarge", "us-west-2a"]])
    run = broken.up(check=False)
    assert run.code != 0
    made = [one for one in emulator.decisions() if one["action"] == "eks:CreateCluster"]
    assert (len(made), account.cluster(CLUSTER)["status"]) == (1, "ACTIVE"), "a slow answer is not asked for again"
    (name,) = (
        one for one in account.eks.list_nodegroups(clusterName=CLUSTER)["nodegroups"] if one.startswith("system-a")
    )
    assert f"waiting for EKS Node Group ({CLUSTER}:{name}) create: unexpected state 'CREATE_FAILED'" in run.text
    assert "InsufficientInstanceCapacity - We currently do not have sufficient m7i.xlarge capacity in the" in run.text
    assert "Traceback" not in run.text
    emulator.switch(SLOW, {})
    emulator.switch(SHORTAGE, [])
    again = broken.up()
    assert f"node group {name} got no nodes when it was made" in again.text
    assert f"aws eks delete-nodegroup --region {REGION} --cluster-name {CLUSTER} --nodegroup-name {name}" in again.text
    account.eks.delete_nodegroup(clusterName=CLUSTER, nodegroupName=name)
    assert "got no nodes" not in broken.up("--refresh").text
    assert {g["status"] for own in account.zone_groups(CLUSTER).values() for g in own.values()} == {"ACTIVE"}
    for pool in ("l4", "mirror", "system"):
        for group in account.zone_groups(CLUSTER)[pool].values():
            account.eks.delete_nodegroup(clusterName=CLUSTER, nodegroupName=group["nodegroupName"])
    broken.refresh()


def _what_a_killed_up_made_without_knowing_it_is_mended_as_the_docs_say(broken: FleetProject, account: Account) -> None:
    """docs/aws.md, "When Pulumi was killed": otherwise the next `up` makes a second node group next to the first."""
    _kill_in(broken, {"after": {"CreateNodegroup": 600}}, "CreateNodegroup was carried out")
    (name,) = account.eks.list_nodegroups(clusterName=CLUSTER)["nodegroups"]
    (pending,) = broken.deployment()["pending_operations"]
    assert (pending["type"], pending["resource"]["type"]) == ("creating", "aws:eks/nodeGroup:NodeGroup")
    account.eks.delete_nodegroup(clusterName=CLUSTER, nodegroupName=name)
    broken.faults(None)
    broken.refresh("--clear-pending-creates")
    assert not broken.deployment().get("pending_operations")


def _an_up_that_was_killed_before_a_call_went_out_is_finished_by_the_next(
    broken: FleetProject, account: Account
) -> None:
    _kill_in(broken, {"before": {"CreateNodegroup": 600}}, "eks:CreateNodegroup")
    assert account.eks.list_nodegroups(clusterName=CLUSTER)["nodegroups"] == []
    broken.faults(None)
    assert "1 pending operations" in broken.up().text, "Pulumi must say what was in progress"
    assert set(account.node_groups(CLUSTER)) == {"system", "mirror", "l4"}
    assert set(broken.up("--refresh").changes) == {"same"}
    broken.destroy()
    assert account.everything() == [], "a stopped run left something that the state does not know"


def _kill_in(project: FleetProject, script: dict[str, Any], line: str) -> None:
    """Kills an `up` as soon as the stand-in has written `line` about a call, and removes the dead lock."""
    log = project.folder / "calls.log"
    log.unlink(missing_ok=True)
    project.faults({**script, "log": str(log)})
    running = project.start("up", "--parallel", "1")  # no other call is in progress then
    try:
        wait_until(lambda: log.is_file() and line in log.read_text(), seconds=240, what=line)
    finally:
        running.kill()
    wait_until(lambda: not project.living_processes(), seconds=120, what="the end of the plugin")
    assert [lock.stack for lock in clear_dead_locks(project.state.as_uri())] == ["test"]
