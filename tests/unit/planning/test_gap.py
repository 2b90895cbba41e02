"""What an edit leaves of a model: the surge that the plan chooses, and the sentence about the gap."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from modelfleet.infra.planning import Plan, plan
from modelfleet.infra.planning.local import Machine
from modelfleet.serving.config.errors import InputErrors, Severity
from modelfleet.serving.config.load import LoadedModel
from tests.unit.planning.builders import CODE, model, pool, stack

#: A g6.2xlarge has one GPU.
ONE_GPU = "g6.2xlarge"
GIB = 2**30


def planned(models: Sequence[LoadedModel], nodes: int, machine: Machine | None = None, **settings: Any) -> Plan:
    pools = [pool("l4", "L4", maxNodes=nodes, instanceTypes=[ONE_GPU])]
    return plan(models, stack(*pools, **settings), code=CODE, machine=machine)


def with_deployment(one: LoadedModel, **changes: Any) -> LoadedModel:
    """The model with other keys of deployment_config."""
    deployment = one.config.deployment_config.model_copy(update=changes)
    return dataclasses.replace(one, config=one.config.model_copy(update={"deployment_config": deployment}))


def options(made: Plan, index: int = 0) -> dict[str, Any]:
    (one,) = made.models[index].application.as_config()["deployments"]
    return dict(one)


def test_where_the_pool_has_room_for_one_more_the_next_replica_starts_first() -> None:
    made = planned([model("org/a"), model("org/b")], nodes=3)
    assert [one.gap.sentence for one in made.models] == ["no gap", "no gap"]
    assert options(made)["name"] == "vllm" and options(made)["max_surge_percent"] == 20


def test_without_room_the_old_replica_stops_first_because_a_surge_would_wait_forever() -> None:
    made = planned([model("org/a"), model("org/b")], nodes=2)
    gap = made.models[0].gap
    assert options(made)["max_surge_percent"] == 0
    assert gap.minutes == 3
    assert gap.sentence == (
        "gap of about 3 min, and while open streams end (8 min at most), because pool l4 has no room for one replica "
        "more (maxNodes 2); to close it, write maxNodes: 3 for pool l4"
    )
    closed = planned([model("org/a"), model("org/b")], nodes=3)
    assert closed.models[0].gap.minutes == 0, "what the sentence says closes it"


def test_the_gap_is_the_start_that_the_plan_shows_rounded_up() -> None:
    one = plan(
        [model("Qwen/Qwen3-8B")], stack(pool("l4", "L4", maxNodes=1, instanceTypes=[ONE_GPU])), code=CODE
    ).models[0]
    assert one.start is not None and (round(one.start.again_seconds), one.gap.minutes) == (103, 2)


def test_a_model_with_several_replicas_has_no_gap_without_room() -> None:
    gap = planned([model(replicas=(2, 2))], nodes=2).models[0].gap
    assert (gap.sentence, gap.surge_percent) == ("no gap; its 2 replicas change one after another", 0)


def test_a_pool_that_may_be_full_is_said() -> None:
    gap = planned([model(replicas=(1, 2))], nodes=2).models[0].gap
    assert (gap.sentence, gap.surge_percent) == ("no gap; an edit waits while the pool is full", 20)


def test_the_file_decides_and_a_surge_without_room_is_a_warning() -> None:
    zero = planned([with_deployment(model(), max_surge_percent=0)], nodes=2).models[0].gap
    assert zero.minutes and zero.sentence.endswith(
        "because max_surge_percent is 0 in its file; to close it, remove it there"
    )
    made = planned([with_deployment(model(), max_surge_percent=50)], nodes=1)
    assert options(made)["max_surge_percent"] == 50
    (warning,) = [one for one in made.notices if one.path == "deployment_config.max_surge_percent"]
    assert warning.severity is Severity.WARNING
    assert "found 50, but pool l4 has no room for one replica more (maxNodes 1)" in warning.message


@pytest.mark.parametrize(("gib", "surge"), [(7, 20), (8, 0)])
def test_a_next_replica_whose_cache_shared_memory_does_not_hold_beside_the_old_one_starts_after_it(
    gib: int, surge: int
) -> None:
    """/dev/shm has 15.5 GiB for caches. Ray counts only GPUs, and vLLM ended in the new replica of each edit."""
    node = stack(pool("l4", "L4", maxNodes=2, instanceTypes=["g6.12xlarge"]))
    gap = plan([model(engine_kwargs={"kv_offloading_size": gib})], node, code=CODE).models[0].gap
    assert gap.surge_percent == surge
    assert bool(surge) or "because a node's /dev/shm holds no cache more (kv_offloading_size); to close" in gap.sentence


def test_caches_of_other_models_on_the_node_count_and_models_without_one_are_free() -> None:
    node = stack(pool("l4", "L4", maxNodes=2, instanceTypes=["g6.12xlarge"]))
    caches = {"org/a": 5, "org/b": 6, "org/c": None}
    models = [model(name, engine_kwargs={"kv_offloading_size": gib} if gib else {}) for name, gib in caches.items()]
    made = plan(models, node, code=CODE)
    assert [one.gap.surge_percent for one in made.models] == [0, 0, 20], "5 + 5 + 6 and 5 + 6 + 6 are above 15.5"


def test_ray_serve_takes_what_the_plan_writes() -> None:
    from ray.serve.schema import ServeApplicationSchema

    made = planned([model()], nodes=2)
    (read,) = ServeApplicationSchema.model_validate(made.models[0].application.as_config()).deployments
    assert (read.name, read.max_surge_percent, read.graceful_shutdown_timeout_s) == ("vllm", 20, 480)


def test_another_models_room_is_no_part_of_the_arguments_that_restart_a_model() -> None:
    alone, crowded = planned([model("org/a")], nodes=2), planned([model("org/a"), model("org/b")], nodes=2)
    assert alone.models[0].gap.surge_percent != crowded.models[0].gap.surge_percent
    assert alone.models[0].application.args == crowded.models[0].application.args
    assert alone.models[0].application.runtime_env == crowded.models[0].application.runtime_env


@pytest.mark.parametrize(
    ("target", "timeout_s", "own", "expected"),
    [
        pytest.param("eks", 3600, None, 480, id="eks-gives-nine-minutes"),
        pytest.param("eks", 300, None, 300, id="the-gateway-allows-less"),
        pytest.param("kubernetes", 3600, None, 840, id="an-existing-cluster"),
        pytest.param("local", 3600, None, 3600, id="nothing-drains-here"),
        pytest.param("eks", 3600, 30.0, 30, id="the-file"),
    ],
)
def test_streams_get_as_long_as_the_gateway_allows_within_what_a_drain_leaves(
    target: str, timeout_s: int, own: float | None, expected: int
) -> None:
    one = with_deployment(model(), graceful_shutdown_timeout_s=own)
    made = planned([one], nodes=2, target=target, gateway={"timeoutS": timeout_s})
    assert options(made)["graceful_shutdown_timeout_s"] == expected


def local(cpus: int, memory_gib: int | None, *models: LoadedModel) -> Plan:
    machine = None if memory_gib is None else Machine(memory_gib * GIB)
    settings = stack(pool("cpu", "CPU", maxNodes=1), target="local", local={"cpus": cpus})
    return plan(models, settings, code=CODE, machine=machine)


def two_pools(cpus: int | None, *models: LoadedModel) -> Plan:
    pools = pool("cpu", "CPU", maxNodes=1), pool("l4", maxNodes=1)
    settings = stack(*pools, target="local", local={} if cpus is None else {"cpus": cpus})
    return plan(models, settings, code=CODE)


def test_the_pools_of_this_machine_share_its_cpus() -> None:
    """Each was planned as if it had all, and Ray then waited for CPUs that another pool's model had."""
    two = [model("org/a", "CPU"), model("org/b", "L4")]
    bundles = [bundle for one in two_pools(64, *two).models for bundle in one.bundles]
    needed = round(sum(bundle.get("CPU", 0) for bundle in bundles))
    with pytest.raises(InputErrors) as caught:
        two_pools(needed - 1, *two)
    (found,) = caught.value.findings
    assert found.path == "modelfleet:local.cpus"
    assert f"take {needed} CPUs" in found.message and f"write {needed}," in found.message
    gaps = [one.gap.because for one in two_pools(needed, *two).models]
    assert gaps[0] == f"this machine has no CPUs for one replica more (local.cpus {needed})"
    assert "no CPUs" in gaps[1] or "no GPU" in gaps[1]
    assert two_pools(None, *two).models[0].gap.surge_percent == 20, "there is room by default"


def test_on_this_machine_cpus_and_memory_are_the_room() -> None:
    known = model("HuggingFaceTB/SmolLM2-135M-Instruct", "CPU")
    assert local(4, 64, known).models[0].gap.sentence == "no gap"
    few = local(3, 64, known).models[0].gap
    assert few.because == "this machine has no CPUs for one replica more (local.cpus 3)"
    assert few.close == "write modelfleet:local.cpus: 4"
    small = local(4, 5, known).models[0].gap
    assert small.because == "this machine's memory holds no replica more" and small.surge_percent == 0
    assert local(4, None, known).models[0].gap.surge_percent == 20, "a plan without a machine knows no limit"
