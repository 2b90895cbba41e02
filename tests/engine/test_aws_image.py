"""A stack that names no image makes its own two: `pulumi up` with the real engine, plugin, buildspec and role."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.engine.aws_account import Account
from tests.engine.aws_fleet import ACCOUNT, REGION, FleetProject, model, stack_of
from tests.engine.conftest import Emulator
from tools.cloud.app import MISHAPS

POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.xlarge"]}
LIMIT = "toomanyrequests: You have reached your unauthenticated pull rate limit."


@pytest.fixture
def fleet(tmp_path: Path, emulator: Emulator) -> Iterator[FleetProject]:
    project = FleetProject(tmp_path, emulator, builds_image=True)
    project.files(stack_of(pools=[POOL]), {"org--m": model("org/m", "L4")})
    yield project
    assert not project.living_processes()


def mishaps(emulator: Emulator, wishes: Mapping[str, str]) -> None:
    request = urllib.request.Request(emulator.url + MISHAPS, data=json.dumps(wishes).encode(), method="PUT")
    urllib.request.urlopen(request, timeout=60)


@pytest.mark.timeout(1800)
def test_no_node_is_bought_before_the_image_is_there_and_pods_get_its_digest(
    fleet: FleetProject, emulator: Emulator
) -> None:
    account = Account(emulator, REGION)
    mishaps(emulator, {"docker build": LIMIT})
    failed = fleet.up(check=False)
    assert failed.code != 0
    assert LIMIT in failed.text, "the log's failing lines are shown"
    assert account.node_groups("modelfleet-test") == {}
    mishaps(emulator, {})
    fleet.up()
    name = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/modelfleet-test/serving"
    (image,) = account.client("ecr").describe_images(repositoryName="modelfleet-test/serving")["imageDetails"]
    assert fleet.outputs()["image"] == f"{name}@{image['imageDigest']}"
    (mirror,) = account.client("ecr").describe_images(repositoryName="modelfleet-test/mirror")["imageDetails"]
    assert mirror["imageDigest"] != image["imageDigest"], "the mirror Jobs' own, of the same project"
    assert set(fleet.up().changes) == {"same"}
    fleet.destroy()
    assert account.everything() == []
