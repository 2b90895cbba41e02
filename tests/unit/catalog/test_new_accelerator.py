"""An accelerator is rows in CSV files: an invented one is checked, planned and rendered without editing Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
ROWS = {
    "serving/config/data/accelerators.csv": "X9-192G,x9,X9,196608,190000,12.0,16384,1024,bf16 fp8,true,X9",
    "infra/catalog/ec2-instances.csv": "X9-192G,x9.48xlarge,192,2048,8,30400,16,737,100",
    "infra/catalog/prices.csv": "us-east-1,x9.48xlarge,98.32,2026-11-28,made up for a test",
    "infra/catalog/quotas.csv": "x9,on-demand,L-0000000X,Running On-Demand X9 instances",
}
MODEL = {
    "deployment_config": {"ray_actor_options": {"num_cpus": 1, "resources": {"accelerator_type:X9-192G": 0.001}}},
    "engine_config": {"model_id": "meta-llama/Llama-2-70b-chat-hf", "type": "VLLMEngine"},
    "scaling_config": {
        "num_workers": 2,
        "num_gpus_per_worker": 1,
        "num_cpus_per_worker": 1,
        "placement_strategy": "STRICT_PACK",
        "resources_per_worker": {"accelerator_type:X9-192G": 0.001},
    },
}
STACK = {
    "aws:region": "us-east-1",
    "modelfleet:models": ["*"],
    "modelfleet:target": "eks",
    "modelfleet:auth": "none",
    "modelfleet:accountId": "123456789012",
    "modelfleet:pools": [{"name": "x9", "accelerator": "X9-192G", "maxNodes": 2}],
    "modelfleet:cluster": {"publicAccessCidrs": ["203.0.113.0/24"]},
}
#: What a run would make: the pool's launch template, the quota that it counts against, the worker group.
RENDER = """
import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
import pulumi

made = {}

class Recorder(pulumi.runtime.Mocks):
    def call(self, args):
        return {}

    def new_resource(self, args):
        made[args.typ] = args.inputs
        return args.name, {**args.inputs, "resources": [{"autoscalingGroups": [{"name": "asg"}]}], "latestVersion": 1}

asyncio.set_event_loop(asyncio.new_event_loop())
pulumi.runtime.set_mocks(Recorder(), preview=False)

from modelfleet.infra.aws.facts import AccountFacts
from modelfleet.infra.aws.node_groups import NodeGroups, NodeSettings
from modelfleet.infra.aws.preflight import preflight, quota_codes
from modelfleet.infra.aws.site import site_of
from modelfleet.infra.kubernetes.manifests.ray import ray_service
from modelfleet.infra.reading.workspace import make_plan

plan = make_plan(Path.cwd(), "test", deploying=False)
zones = ("us-east-1a", "us-east-1b", "us-east-1c")
offered = dict.fromkeys(("x9.48xlarge", "m7i.xlarge", "m7i.2xlarge"), frozenset(zones))
quotas = {**dict.fromkeys(quota_codes(plan), 10_000.0), "L-0000000X": 191.0}
facts = AccountFacts("123456789012", "aws", "us-east-1", "arn:aws:iam::123456789012:role/r", zones, offered, quotas)
node = SimpleNamespace(arn="arn:aws:iam::123456789012:role/node", ready=[])

def program():
    nodes = NodeSettings(site_of(plan, facts), plan.config.cluster, SimpleNamespace(name="c"), node, {}, [])
    NodeGroups("pool", plan.pools, nodes=nodes, subnets={"x9": {zones[0]: ["subnet-1"]}})

pulumi.runtime.test(program)()
(group,) = ray_service(plan)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
print(json.dumps({
    "types": made["aws:eks/nodeGroup:NodeGroup"]["instanceTypes"],
    "labels": made["aws:eks/nodeGroup:NodeGroup"]["labels"],
    "refused": [finding.sentence() for finding in preflight(plan, facts)],
    "resources": group["resources"],
}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the product's packages with the new rows, and a project on the new accelerator."""
    root = tmp_path_factory.mktemp("copy")
    for package in ("cli", "doctor", "infra", "requirements", "serving"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "modelfleet", root / "modelfleet", symlinks=True)
    for name, row in ROWS.items():
        with (root / name).open("a") as stream:
            stream.write(f"{row}\n")
    for folder, name, content in (
        ("models", "meta-llama--Llama-2-70b-chat-hf", MODEL),
        ("stacks", "Pulumi.test", {"config": STACK}),
    ):
        (root / folder).mkdir()
        (root / folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return root


def run(copy: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_copy_runs_and_no_python_differs(copy: Path) -> None:
    assert run(copy, "-c", "from modelfleet import cli, infra, serving; print(infra.__file__)").startswith(str(copy))
    for path in copy.rglob("*.py"):
        assert path.read_bytes() == (ROOT / path.relative_to(copy)).read_bytes()


def test_it_is_checked(copy: Path) -> None:
    checked = json.loads(run(copy, "-m", "modelfleet.cli.main", "check", "models", "--stack", "test", "--json"))
    unset = ("modelfleet:kubernetes.image", "modelfleet:huggingFaceToken")
    faults = [finding for finding in checked["findings"] if finding["severity"] in ("error", "warning")]
    assert [finding for finding in faults if finding["path"] not in unset] == []


def test_rayllms_spelling_of_it_is_known(copy: Path) -> None:
    said = run(copy, "-c", "from modelfleet.serving.config.accelerators import legacy_resources as l; print(l())")
    assert "'accelerator_type_x9': 'X9-192G'" in said and "'accelerator_type_x9_192g': 'X9-192G'" in said


def test_it_is_planned_with_its_memory_and_its_price(copy: Path) -> None:
    plan = json.loads(run(copy, "-m", "modelfleet.cli.main", "plan", "--stack", "test", "--json"))
    (pool,), (model,) = plan["pools"], plan["models"]
    assert (pool["accelerator"], pool["instance_types"]) == ("X9-192G", ["x9.48xlarge"])
    assert pool["usd_per_node_hour"] == 98.32
    assert model["memory"]["total_mib"] == 190000


def test_it_is_rendered_with_its_quota_and_its_resource(copy: Path) -> None:
    rendered: dict[str, Any] = json.loads(run(copy, "-c", RENDER).splitlines()[-1])
    assert rendered["types"] == ["x9.48xlarge"]
    assert rendered["labels"]["k8s.amazonaws.com/accelerator"] == "x9-192g"
    (refused,) = rendered["refused"]
    assert "need up to 384 vCPUs of 'Running On-Demand X9 instances'; the account's quota L-0000000X" in refused
    assert rendered["resources"] == {"CPU": "191", "GPU": "8", "accelerator_type:X9-192G": "1"}
