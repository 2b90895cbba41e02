"""AWS calls that fail, throttle or never come back: the next `pulumi up` finishes, nothing is made twice or lost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest

from infra.aws.fleet import AwsFleet
from tests.engine.aws_account import Account
from tests.engine.aws_fleet import REGION, FleetProject, model, stack_of
from tests.engine.conftest import Emulator
from tests.engine.engine import wait_until
from tests.engine.mocked_engine import FailEachOnce, MockedEngine

#: pulumi_aws warns about its own old names when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*has been deprecated in favor of.*:DeprecationWarning")

POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.xlarge"]}
STACK = stack_of(pools=[POOL], network={"zones": 2, "interfaceEndpoints": True})
MODELS = {"org--m": model("org/m", "L4", s3_mirror_config={"bucket_uri": "s3://company/m"})}


@pytest.fixture
def fleet(tmp_path: Path, emulator: Emulator) -> Iterator[FleetProject]:
    if Account(emulator, REGION).everything():
        emulator.restart()  # an earlier test failed and left its fleet
    project = FleetProject(tmp_path, emulator)
    project.files(STACK, MODELS)
    yield project
    assert not project.living_processes()


@pytest.fixture
def account(emulator: Emulator) -> Account:
    return Account(emulator, REGION)


def _summary(account: Account) -> dict[str, Any]:
    """The account in numbers and settings that do not depend on ids."""
    groups = account.node_groups("modelfleet-test")
    roles = sorted(role["RoleName"] for role in account.iam.list_roles()["Roles"])
    return {
        "things": len(account.everything()),
        "roles": roles,
        "statements": {
            role: re.sub(r"key/[0-9a-f-]{36}", "key", json.dumps(account.statements(role))) for role in roles
        },
        "groups": {pool: (group["scalingConfig"], group["labels"], group["taints"]) for pool, group in groups.items()},
        "updates": {pool: (group["updateConfig"], group["nodeRepairConfig"]) for pool, group in groups.items()},
        "tags": {pool: account.scaling_tags(group) for pool, group in groups.items()},
        "cluster": {key: account.cluster("modelfleet-test")[key] for key in ("accessConfig", "logging", "version")},
        "table": sorted(key.split("/")[1] for key in account.table_keys()),
    }


def _make(project: FleetProject, engine: MockedEngine) -> None:
    """Runs the program once, with `engine` in the place of Pulumi's."""
    plan = project.plan()
    archive = project.folder / "code.zip"
    archive.write_bytes(b"code")
    engine.run(lambda: AwsFleet("aws", plan, code=pulumi.FileAsset(str(archive))))


def test_every_single_call_of_a_fleet_may_fail_once(
    fleet: FleetProject, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
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
    assert rough.half_made >= 5, "hardly a resource was ever left half made"
    found = _summary(account)
    for part in wanted:
        assert found[part] == wanted[part], part
    rough.destroy()
    assert account.everything() == [], "something was made twice and nobody knows of it"


def test_the_engine_goes_on_where_a_failed_or_throttled_call_stopped_it(fleet: FleetProject, account: Account) -> None:
    done: list[int] = []
    for at, code in ((3, "ThrottlingException"), (30, "InternalFailure"), (25, "RequestLimitExceeded")):
        fleet.faults({"at": at, "code": code})
        run = fleet.up("--parallel", "4", check=False)
        assert run.code != 0
        assert f"scripted failure of call {at}" in run.text
        assert "Traceback" not in run.text
        done.append(len(fleet.resources()))
    assert done == sorted(done), "a later run lost what an earlier one had made"
    fleet.faults(None)
    fleet.up()
    assert set(fleet.up().changes) == {"same"}
    fleet.destroy()
    assert account.everything() == []


def test_a_killed_up_is_finished_by_the_next(fleet: FleetProject, account: Account) -> None:
    log = fleet.folder / "calls.log"
    fleet.faults({"after": {"CreateNodegroup": 60}, "log": str(log)})
    running = fleet.start("up")
    wait_until(lambda: log.is_file() and "CreateNodegroup" in log.read_text(), seconds=200, what="a node group")
    running.kill()
    wait_until(lambda: not fleet.living_processes(), what="the end of the plugin")
    assert account.eks.list_nodegroups(clusterName="modelfleet-test")["nodegroups"] == []
    fleet.faults(None)
    fleet.up()
    assert set(account.node_groups("modelfleet-test")) == {"system", "l4"}
    assert set(fleet.up().changes) == {"same"}
    fleet.destroy()
    assert account.everything() == [], "the killed run left something that the state does not know"
