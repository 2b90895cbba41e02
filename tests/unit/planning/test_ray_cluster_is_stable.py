"""A changed Ray cluster makes KubeRay build a second one: twice the GPUs, or a replica that never starts.

See kuberay#660, #1476, #2274, #4239. So no change of the model files may change the Ray cluster.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.cli.plan_json import plain
from modelfleet.infra.planning.plan import Plan
from modelfleet.serving.config.load import LoadedModel
from tests.examples import examples
from tests.unit.planning.builders import model, planned, pool, stack

PINNED = (
    pool("t4", "T4", instanceTypes=["g4dn.12xlarge"], maxNodes=64),
    pool("l4", "L4", instanceTypes=["g6.12xlarge"], minNodes=1, maxNodes=64),
    pool("spot", "L4", purchase="spot", instanceTypes=["g6.48xlarge"], maxNodes=64),
)
EKS = stack(*PINNED)
LOCAL = stack(pool("cpu", "CPU"), target="local", region=None, local={"cpus": 1000})
NODES = stack(pool("l4", "L4", node={"cpus": 32, "memoryGib": 128, "gpus": 4}, maxNodes=64), target="kubernetes")

names = st.sampled_from([f"org/m{index}" for index in range(6)])
steps = st.one_of(
    st.tuples(
        st.just("put"), names, st.sampled_from(["T4", "L4"]), st.integers(1, 4), st.integers(1, 3), st.integers(0, 4)
    ),
    st.tuples(st.just("remove"), names),
    st.tuples(st.just("shuffle"), st.randoms(use_true_random=False)),
)


def cluster_bytes(plan: Plan) -> bytes:
    return json.dumps(plain(plan.ray_cluster), sort_keys=False).encode()


def changed(models: list[LoadedModel], step: tuple[Any, ...], accelerator: str | None) -> list[LoadedModel]:
    """Add or edit a model, remove one, or list them in another order."""
    match step:
        case ("put", name, own, workers, cpus, replicas):
            made = model(
                name, accelerator or own, workers=workers, cpus=cpus, replicas=(replicas, replicas + 2), lined=False
            )
            return [*(m for m in models if m.config.model_id != name), made]
        case ("remove", name):
            return [m for m in models if m.config.model_id != name]
        case ("shuffle", random):
            models = list(models)
            random.shuffle(models)
    return models


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(steps, max_size=8))
def test_no_sequence_of_model_changes_changes_a_pinned_ray_cluster(sequence: list[tuple[Any, ...]]) -> None:
    models: list[LoadedModel] = []
    before = cluster_bytes(planned(models, EKS))
    for step in sequence:
        models = changed(models, step, None)
        assert cluster_bytes(planned(models, EKS)) == before, "KubeRay would build a second cluster"


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(steps, max_size=6))
def test_no_sequence_of_model_changes_restarts_the_local_ray(sequence: list[tuple[Any, ...]]) -> None:
    models: list[LoadedModel] = []
    before = cluster_bytes(planned(models, LOCAL))
    for step in sequence:
        models = changed(models, step, "CPU")
        assert cluster_bytes(planned(models, LOCAL)) == before


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(steps, max_size=6))
def test_no_sequence_of_model_changes_changes_an_existing_cluster(sequence: list[tuple[Any, ...]]) -> None:
    models: list[LoadedModel] = []
    before = cluster_bytes(planned(models, NODES))
    for step in sequence:
        models = changed(models, step, "L4")
        assert cluster_bytes(planned(models, NODES)) == before


def test_an_appended_pool_leaves_the_groups_before_it_as_they_were() -> None:
    """KubeRay takes a group appended at the end without building a second cluster; any other change builds one."""
    before = planned([], EKS).ray_cluster.worker_groups
    after = planned([], stack(*PINNED, pool("a100", "A100-40G", instanceTypes=["p4d.24xlarge"]))).ray_cluster
    assert after.worker_groups[: len(before)] == before
    assert len(after.worker_groups) == len(before) + 1


def test_the_order_of_model_files_does_not_change_the_plan() -> None:
    models = [model(f"org/m{index}", lined=False) for index in range(4)]
    forward, backward = planned(models, EKS), planned(models[::-1], EKS)
    assert json.dumps(plain(forward.models)) == json.dumps(plain(backward.models))
    assert forward.serve_config == backward.serve_config


def test_an_unpinned_instance_type_gives_a_notice_and_pinning_it_keeps_the_cluster() -> None:
    """`auto` follows the models, hence the notice and --pin."""
    small, large = model("org/a", cpus=1), model("org/b", workers=4, cpus=1)
    open_stack = stack(pool("l4", "L4"))
    first, second = planned([small], open_stack), planned([small, large], open_stack)
    assert first.pools[0].instance_types == ("g6.xlarge",)
    assert second.pools[0].instance_types == ("g6.12xlarge",)
    assert any("--pin" in notice.message for notice in first.notices)
