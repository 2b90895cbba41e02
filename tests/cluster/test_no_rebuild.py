"""No change of models builds a new Ray cluster: name, UID and pods stay over 50 random changes on the live operator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.manifests.ray import ray_service
from tests.cluster.conftest import MANAGER, Stack, wait_for
from tests.cluster.fleet import model, planned
from tests.cluster.head import FakeRay, head_address, head_token, on_loopback

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

POOLS = [
    {"name": "l4", "accelerator": "L4", "maxNodes": 60, "instanceTypes": ["g6.2xlarge"]},
    {"name": "t4", "accelerator": "T4", "maxNodes": 60, "instanceTypes": ["g4dn.12xlarge"]},
]
STEPS = 50
HOSTILE = "on: [yes, 1e3, 0x10, ~]\n\t\u2028\x85 {instruction} '\"\\ 😀 %s $X \x7f"


@pytest.fixture
def live(stack_of: Callable[..., Stack]) -> Iterator[tuple[Stack, FakeRay]]:
    stack = stack_of([model("org/first", "L4")], pools=POOLS, most_nodes=2)
    where = stack.api, stack.namespace
    with on_loopback(head_address(*where)) as address, FakeRay(address, head_token(*where)) as ray:
        stack.scale({"l4": 1})
        wait_for("Ready", lambda: _ready(stack), seconds=120)
        wait_for("a worker", stack.workers)
        yield stack, ray


def _ready(stack: Stack) -> bool:
    service = stack.api.get("ray.io/v1", "RayService", "fleet", stack.namespace) or {}
    conditions = {c["type"]: c["status"] for c in service.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True"


def _identity(stack: Stack) -> tuple[str, str, list[str]]:
    cluster = stack.ray_cluster()["metadata"]
    pods = stack.api.list("v1", "Pod", stack.namespace, "ray.io/is-ray-node=yes")
    return cluster["name"], cluster["uid"], sorted(pod["metadata"]["uid"] for pod in pods)


def _change(models: list[dict[str, Any]], choose: random.Random, number: int) -> None:
    """Add, edit, remove or reorder, in place."""
    kind = choose.choice(["add", "edit", "remove", "reorder"])
    if kind == "add" or len(models) < 2:
        models.insert(
            choose.randrange(len(models) + 1), model(f"org/m{number}", choose.choice(["L4", "T4"]), workers=1)
        )
    elif kind == "edit":
        one = choose.choice(models)
        one["engine_config"]["max_total_tokens"] = 256 + number
        one["deployment_config"]["autoscaling_config"]["max_replicas"] = choose.randint(1, 3)
    elif kind == "remove":
        models.pop(choose.randrange(len(models)))
    else:
        choose.shuffle(models)


def test_fifty_random_changes_of_models_keep_cluster_and_pods(live: tuple[Stack, FakeRay], tmp_path: Path) -> None:
    stack, ray = live
    before, choose = _identity(stack), random.Random(20261124)
    models = [model("org/first", "L4")]
    for number in range(STEPS):
        _change(models, choose, number)
        plan = planned(tmp_path, models, stack=stack.plan.stack, pools=POOLS)
        stack.api.apply(ray_service(plan), manager=MANAGER, force=True)
        wait_for(f"step {number} to reach Ray", lambda plan=plan: ray.config == plan.serve_config, seconds=240)
        assert _identity(stack) == before, f"step {number}: {[m['engine_config']['model_id'] for m in models]}"
    assert ray.puts >= STEPS // 2


def test_an_appended_pool_and_more_nodes_keep_cluster_and_pods(live: tuple[Stack, FakeRay], tmp_path: Path) -> None:
    """`replicas` of existing groups must not fall back to the RayService's value either."""
    stack, _ = live
    before = _identity(stack)
    pools = [
        {**POOLS[0], "maxNodes": 61},
        POOLS[1],
        {"name": "a10g", "accelerator": "A10G", "maxNodes": 1, "instanceTypes": ["g5.12xlarge"]},
    ]
    stack.api.apply(
        ray_service(planned(tmp_path, [model("org/first", "L4")], stack=stack.plan.stack, pools=pools)),
        manager=MANAGER,
        force=True,
    )

    def appended() -> bool:
        groups = {g["groupName"]: g["maxReplicas"] for g in stack.ray_cluster()["spec"]["workerGroupSpecs"]}
        return groups == {"l4": 62, "t4": 61, "a10g": 2}  # one more than the pool has nodes

    wait_for("the new group", appended, seconds=60)
    assert _identity(stack) == before


def test_a_new_image_does_build_a_second_cluster(live: tuple[Stack, FakeRay], tmp_path: Path) -> None:
    """The mutation that proves that the tests above can fail."""
    stack, _ = live
    name, uid, _pods = _identity(stack)
    plan = planned(
        tmp_path, [model("org/first", "L4")], stack=stack.plan.stack, pools=POOLS, kubernetes={"image": "other:2"}
    )
    stack.api.apply(ray_service(plan), manager=MANAGER, force=True)
    clusters = wait_for(
        "a second cluster",
        lambda: (c := stack.api.list("ray.io/v1", "RayCluster", stack.namespace))[1:] and c,
        seconds=60,
    )
    assert {(c["metadata"]["name"], c["metadata"]["uid"]) for c in clusters} > {(name, uid)}


def test_a_prompt_format_reaches_ray_as_it_was_written(live: tuple[Stack, FakeRay], tmp_path: Path) -> None:
    stack, ray = live
    prompt = dict.fromkeys(("system", "assistant", "user"), HOSTILE) | {"trailing_assistant": HOSTILE}
    one = model("org/first", "L4", generation={"prompt_format": prompt})
    plan = planned(tmp_path, [one], stack=stack.plan.stack, pools=POOLS)
    stack.api.apply(ray_service(plan), manager=MANAGER, force=True)
    wait_for("the config to reach Ray", lambda: ray.config == plan.serve_config, seconds=60)
    assert ray.config["applications"][0]["args"]["model"]["engine_config"]["generation"]["prompt_format"] == prompt
