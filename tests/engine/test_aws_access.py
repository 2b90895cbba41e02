"""Who runs `pulumi up`: without credentials it ends in a line, and after a `destroy` it works again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.aws_account import Account
from tests.engine.aws_fleet import REGION, FleetProject, model, stack_of
from tests.engine.conftest import Emulator

POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.xlarge"]}
LOG_GROUP = "/aws/eks/modelfleet-test/cluster"


@pytest.fixture
def fleet(tmp_path: Path, emulator: Emulator) -> Iterator[FleetProject]:
    project = FleetProject(tmp_path, emulator)
    project.files(stack_of(pools=[POOL]), {"org--m": model("org/m", "L4")})
    yield project
    assert not project.living_processes()


def _without_credentials(fleet: FleetProject) -> None:
    """No keys, no files, no instance metadata, and nothing that tells the provider to do without."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del fleet.environ[name]
    nowhere = str(fleet.folder / "nowhere")
    fleet.environ |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        "AWS_CONFIG_FILE": nowhere,
    }
    del fleet.config["aws:skipCredentialsValidation"]


@pytest.mark.parametrize(
    ("profile", "words"), [(None, "No valid credential sources found"), ("prod", "profile (prod) could not be found")]
)
def test_without_credentials_a_preview_ends_in_a_line_and_no_traceback(
    fleet: FleetProject, profile: str | None, words: str
) -> None:
    _without_credentials(fleet)
    fleet.config |= {"aws:profile": profile} if profile else {}
    run = fleet.preview(check=False)
    assert run.code != 0
    assert "Traceback" not in run.text
    (said,) = [line for line in run.diagnostics() if "AWS could not be queried" in line]
    assert words in said and "aws sso login" in said
    assert "\n" not in said and "invo" not in said, "the engine's words about its call help nobody"


@pytest.mark.long(why="a fleet's life twice")
def test_a_stack_that_was_destroyed_comes_up_again(fleet: FleetProject, emulator: Emulator) -> None:
    """EKS makes the log group again after the cluster is gone, and its name is fixed (terraform-aws-eks#2763)."""
    logs = Account(emulator, REGION).client("logs")
    fleet.up()
    fleet.destroy()
    (left,) = logs.describe_log_groups()["logGroups"]
    assert left["logGroupName"] == LOG_GROUP and "retentionInDays" not in left, "that of EKS, for ever and unencrypted"
    again = fleet.up()
    assert ("import", "aws-cluster") in again.steps()
    (group,) = logs.describe_log_groups()["logGroups"]
    (cluster,) = fleet.resources("aws:eks/cluster:Cluster")
    key = cluster["outputs"]["encryptionConfig"]["provider"]["keyArn"]
    assert (group["retentionInDays"], group["kmsKeyId"]) == (90, key)
    assert set(fleet.up().changes) == {"same"}
    fleet.destroy()
