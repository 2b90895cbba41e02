"""Weights and code of a local stack in the emulator's bucket: what is really there, and what is repaired."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfleet.cli.pulumi_lock import clear_dead_locks
from tests.engine.conftest import Emulator
from tests.engine.engine import PRELUDE, PULUMI, Project
from tests.engine.local_stack import ROOT
from tests.engine.slow_proxy import SlowProxy
from tests.waiting import wait_until

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from modelfleet.infra.local.resources import LocalResource
from modelfleet.infra.reading.workspace import code_artifact

provider = local_aws()
bucket = aws.s3.Bucket("bucket", bucket="mirror", force_destroy=True, opts=pulumi.ResourceOptions(provider=provider))
code = code_artifact()
endpoint = config.get("slow") or config.require("endpoint")
LocalResource("Code", "code", {{"endpoint": endpoint, "bucket": bucket.bucket, "key": code.key, "sha256": code.sha256}})
LocalResource("Weights", "weights", {{
    "endpoint": endpoint, "bucket": bucket.bucket, "prefix": "models/org--tiny", "modelId": "org/tiny",
    "source": config.require("source"),
}})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a model."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    return made


@pytest.fixture
def local(tmp_path: Path, emulator: Emulator, folder: Path) -> Iterator[Project]:
    plugin = {"name": "modelfleet", "path": str(PULUMI.parent)}
    project = Project(
        tmp_path / "project",
        pulumi_yaml={"plugins": {"providers": [plugin]}, "options": {"refresh": "always"}},
        config={"endpoint": emulator.url, "source": f"file://{folder}"},
    )
    project.program(PROGRAM.format(root=str(ROOT)), prelude=PRELUDE)
    yield project
    emulator.restart()
    assert not project.living_processes()


def _objects(emulator: Emulator) -> dict[str, bytes]:
    s3 = emulator.client()
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket="mirror").get("Contents", ())]
    return {key: s3.get_object(Bucket="mirror", Key=key)["Body"].read() for key in keys}


def _manifest(objects: dict[str, bytes]) -> dict[str, Any]:
    return dict(json.loads(objects["models/org--tiny/manifest.json"]))


def test_up_fills_the_bucket_and_a_second_one_changes_nothing(local: Project, emulator: Emulator, folder: Path) -> None:
    local.up()
    objects = _objects(emulator)
    files = {file["path"]: file["sha256"] for file in _manifest(objects)["files"]}
    weights = (folder / "model.safetensors").read_bytes()
    assert files["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert weights in objects.values()
    (key,) = [key for key in objects if key.startswith("code/")]
    assert hashlib.sha256(objects[key]).hexdigest() in key
    assert "modelfleet/serving/app.py" in zipfile.ZipFile(io.BytesIO(objects[key])).namelist()
    assert local.up().changes == {"same": 5}


def test_a_mirror_without_a_manifest_counts_as_absent_and_is_filled_again(local: Project, emulator: Emulator) -> None:
    local.up()
    emulator.client().delete_object(Bucket="mirror", Key="models/org--tiny/manifest.json")
    run = local.up()
    assert ("create", "weights") in run.steps()
    assert _manifest(_objects(emulator))["model_id"] == "org/tiny"


@pytest.mark.long(why="drift of one object; below an emulator loses all")
def test_a_lost_file_is_noticed(local: Project, emulator: Emulator) -> None:
    local.up()
    (key,) = [key for key in _objects(emulator) if key.endswith("model.safetensors")]
    emulator.client().delete_object(Bucket="mirror", Key=key)
    local.up()
    assert key in _objects(emulator)


@pytest.mark.long(why="drift of one object; below an emulator loses all")
def test_code_that_somebody_replaced_is_written_again(local: Project, emulator: Emulator) -> None:
    """Its size was all that was compared, and Ray runs whatever is there."""
    local.up()
    (key,) = (one["Key"] for one in emulator.client().list_objects_v2(Bucket="mirror", Prefix="code/")["Contents"])
    right = emulator.client().get_object(Bucket="mirror", Key=key)["Body"].read()
    emulator.client().put_object(Bucket="mirror", Key=key, Body=bytes(len(right)))
    run = local.up()
    assert "not the one that was put there" in run.text
    assert emulator.client().get_object(Bucket="mirror", Key=key)["Body"].read() == right


def test_an_emulator_that_forgot_everything_is_filled_again(local: Project, emulator: Emulator) -> None:
    local.up()
    emulator.restart()
    run = local.up()
    assert run.changes["create"] == 3
    assert _manifest(_objects(emulator))


def test_a_source_that_is_no_model_is_one_sentence_and_the_next_up_goes_on(
    local: Project, emulator: Emulator, folder: Path
) -> None:
    (folder / "config.json").rename(folder / "elsewhere.json")
    run = local.up(check=False)
    assert run.code != 0
    assert f"org/tiny: {folder} has no config.json, so it is not a model folder" in run.text
    assert "Traceback" not in run.text
    (folder / "elsewhere.json").rename(folder / "config.json")
    local.up()
    assert _manifest(_objects(emulator))


def test_up_killed_while_it_uploads_leaves_no_manifest_and_is_taken_up_again(
    local: Project, emulator: Emulator
) -> None:
    with SlowProxy(emulator.port) as proxy:
        local.config["slow"] = proxy.url
        proxy.hold(b"model.safetensors")
        running = local.start("up")
        assert proxy.asked.wait(120), "the weights were never sent"
        running.kill()
        wait_until(lambda: not local.living_processes(), what="the plugin's own end")
        proxy.release()
    assert clear_dead_locks(f"file://{local.state}"), "a killed run leaves its lock"
    assert "models/org--tiny/manifest.json" not in _objects(emulator)
    local.config["slow"] = emulator.url
    local.up()
    assert _manifest(_objects(emulator))


def test_destroy_takes_everything_away(local: Project, emulator: Emulator) -> None:
    local.up()
    assert local.destroy().changes == {"delete": 5}
    assert "mirror" not in emulator.buckets()
