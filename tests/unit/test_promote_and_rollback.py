"""`modelfleet promote` and `rollback` over a real tree of files and moto's S3, with a mirror that is cleaned meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from typer.testing import CliRunner, Result

from modelfleet.cli import promote as promote_module
from modelfleet.cli.main import app
from modelfleet.cli.plan_pin import round_trip
from modelfleet.cli.promote import with_image
from modelfleet.infra.planning.proved import KEPT, Copy, Proved, ProvedModel, before_now, file_for, versions_to_keep
from modelfleet.infra.reading.proved import STATES, Memory
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.infra.stack import load_stack
from modelfleet.serving.config.errors import InputErrors, SetupError
from modelfleet.serving.mirror import Status, fetch, fill, status

ID, SLUG = "Qwen/Qwen3-8B", "Qwen--Qwen3-8B"
COMMIT = "b968826d9c46dd6066d109eabc6255188de91218"
DIGEST = f"registry.example/serving@sha256:{'a' * 64}"
STAGING_FILE, PROD_FILE = f"models/staging/{SLUG}.yaml", f"models/prod/{SLUG}.yaml"
MODEL = """\
# Kept as it is, comments too.
deployment_config:
  autoscaling_config: {{min_replicas: 1, max_replicas: {most}, target_ongoing_requests: 8}}
  max_ongoing_requests: 20
engine_config:
  model_id: Qwen/Qwen3-8B
  revision: {revision}
  max_total_tokens: 4096
scaling_config:
  num_workers: 1
  num_gpus_per_worker: 1
  num_cpus_per_worker: 2
  resources_per_worker: {{"accelerator_type:L4": 0.001}}
"""


def text(most: int = 2, revision: str = COMMIT) -> str:
    return MODEL.format(most=most, revision=revision)


class Tree:
    """A fleet's folder with two stacks of one cluster each, and their buckets."""

    def __init__(self, root: Path, s3: Any) -> None:
        self.root, self.s3 = root, s3
        for name in ("staging", "prod"):
            s3.create_bucket(Bucket=f"fleet-{name}")
            self.stack(name)
        (root / "models" / "prod").mkdir(parents=True)

    def stack(self, name: str, **keys: Any) -> None:
        pool = {"name": "l4", "accelerator": "L4", "instanceTypes": ["g6.2xlarge"], "maxNodes": 4}
        settings = {
            "models": [f"{name}/*"],
            "target": "kubernetes",
            "pools": [pool],
            "auth": "none",
            "kubernetes": {"image": DIGEST},
            "mirror": {"bucket": f"fleet-{name}"},
            **keys,
        }
        config = {"aws:region": "us-east-1", **{f"modelfleet:{key}": value for key, value in settings.items()}}
        path = self.root / "stacks" / f"Pulumi.{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {name}\n{yaml.safe_dump({'config': config})}")

    def write(self, file: str, content: str) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def read(self, file: str) -> str:
        return (self.root / file).read_text()

    def mirror(self, stack: str, content: str, revision: str = COMMIT) -> str:
        """Fill the stack's mirror, as its Job does; returns the version."""
        folder = self.root / "weights"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text(content)
        uri = f"s3://fleet-{stack}/models/{SLUG}"
        return fill(folder, uri, model_id=ID, source=ID, source_revision=revision).version

    def prove(self, stack: str, at: str = "", **keys: Any) -> Proved | None:
        """What `up` does at its end."""
        plan = make_plan(self.root, stack, deploying=False)
        texts = {one.file: self.read(one.file) for one in plan.models}
        return Memory(self.root, plan.source).keep(plan, texts, release="0.1.0", image=None, **keys)

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(app, [*words])


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.chdir(tmp_path)
    times = (f"20261201T{number:06}Z" for number in range(1, 1000))

    class Clock:
        @staticmethod
        def now(zone: Any) -> Any:
            class Moment:
                @staticmethod
                def strftime(form: str) -> str:
                    return next(times)

            return Moment

    monkeypatch.setattr("modelfleet.infra.reading.proved.datetime", Clock)
    with mock_aws():
        yield Tree(tmp_path, boto3.client("s3"))


@pytest.fixture
def proved(tree: Tree) -> Tree:
    """Staging has proved its model."""
    tree.write(STAGING_FILE, text())
    tree.mirror("staging", "one")
    assert tree.prove("staging") is not None
    return tree


def test_a_proved_model_is_copied_byte_for_byte_and_the_plan_s_difference_is_shown(proved: Tree) -> None:
    proved.write(STAGING_FILE, text(most=4))  # edited since, and not proved
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert done.exit_code == 0, done.output
    assert proved.read(PROD_FILE) == text()
    assert f"+ model {ID}" in done.stdout and "Next: modelfleet up --stack prod" in done.stderr
    assert "version" in done.stderr, "which weights were proved"
    again = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert again.exit_code == 0 and "already" in again.stderr


def test_without_yes_nothing_is_written_where_nobody_can_be_asked(proved: Tree) -> None:
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod")
    assert done.exit_code == 0 and "--yes" in done.stderr
    assert not (proved.root / PROD_FILE).exists()


def test_json_says_what_would_be_written(proved: Tree) -> None:
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--json")
    assert json.loads(done.stdout)["files"] == [PROD_FILE]


def test_the_file_that_the_target_has_already_is_the_one_that_changes(proved: Tree) -> None:
    own = f"models/prod/ours-{SLUG}.yaml"
    proved.write(own, text(most=1))
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert done.exit_code == 0, done.output
    assert proved.read(own) == text() and not (proved.root / PROD_FILE).exists()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"budget": {"maxUsdPerHour": 0.5}}, "budget"),
        ({"licence": {"forbid": ["apache"]}}, "licence"),
        ({"pools": [{"name": "t4", "accelerator": "T4", "instanceTypes": ["g4dn.xlarge"], "maxNodes": 4}]}, "L4"),
        ({"models": ["p*/*"]}, "such as prod/*"),
        ({"mirror": {"bucket": "fleet-prod", "sources": {ID: "s3://elsewhere/copy"}}}, "mirror.sources"),
    ],
)
def test_what_the_target_s_plan_refuses_is_not_promoted(proved: Tree, keys: dict[str, Any], says: str) -> None:
    proved.stack("prod", **keys)
    if keys.get("models") is None:
        proved.write("models/prod/other.yaml", text().replace(ID, "Qwen/Qwen3-4B")) if "pools" not in keys else None
    else:
        proved.write("models/prod/other.yaml", text().replace(ID, "Qwen/Qwen3-4B"))
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert isinstance(done.exception, InputErrors), (done.exception, done.output)
    assert says in str(done.exception)
    assert not (proved.root / PROD_FILE).exists()
