"""Of a node's memory the plan packs, Ray reserves and vLLM takes the same bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.facts import ModelFacts, catalog_facts
from modelfleet.infra.planning.host_memory import GIB, with_host_memory
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.serve_options import actor_options, placement_bundles
from tests.unit.planning.builders import model, planned, pool, stack

CATALOG = default_catalog()
SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LLAMA_7B = "meta-llama/Llama-2-7b-chat-hf"
WEIGHTS = 134515008 * 2
"""Bytes of the small model's weights."""


def facts_of(one: LoadedModel) -> ModelFacts | None:
    return catalog_facts([one.config], CATALOG)[one.config.model_id]


def completed(one: LoadedModel, *, reserve: bool = True) -> LoadedModel:
    return dataclasses.replace(one, config=with_host_memory(one.config, facts_of(one), reserve=reserve))


def arguments(one: LoadedModel) -> dict[str, Any]:
    return one.config.engine_config.engine_kwargs


def test_on_cpus_vllm_gets_the_cache_that_ray_reserves_beside_weights_and_processes() -> None:
    one = completed(model(SMALL, "CPU"))
    assert arguments(one)["kv_cache_memory_bytes"] == GIB
    reserved = WEIGHTS + GIB + 2 * GIB
    assert placement_bundles(one.config)[0]["memory"] == reserved
    assert actor_options(one.config)["memory"] == reserved


def test_each_worker_without_a_gpu_has_a_process_and_a_cache() -> None:
    one = completed(model(SMALL, "CPU", workers=3))
    assert placement_bundles(one.config)[0]["memory"] == WEIGHTS + 3 * GIB + 2 * GIB + 3 * GIB


def test_the_cache_holds_at_least_one_sequence_of_the_longest_length() -> None:
    one = completed(model(LLAMA_7B, "CPU", max_total_tokens=4096))
    assert arguments(one)["kv_cache_memory_bytes"] == 2 * 32 * 32 * 128 * 2 * 4096 == 2 * GIB


@pytest.mark.parametrize(
    "engine",
    [
        {"engine_kwargs": {"kv_cache_memory_bytes": 3 * GIB}},
        {"runtime_env": {"env_vars": {"VLLM_CPU_KVCACHE_SPACE": "3"}}},
    ],
    ids=["vllm's argument", "vllm's older variable"],
)
def test_a_cache_that_the_file_gives_is_the_one_that_counts(engine: dict[str, Any]) -> None:
    given = model(SMALL, "CPU", **engine)
    one = completed(given)
    assert arguments(one) == arguments(given)
    assert placement_bundles(one.config)[0]["memory"] == WEIGHTS + 3 * GIB + 2 * GIB


def test_with_gpus_what_is_moved_off_them_is_reserved_on_the_host() -> None:
    plain = completed(model(LLAMA_7B, "A100-40G", workers=2))
    assert placement_bundles(plain.config)[0]["memory"] == 4 * GIB
    assert "kv_cache_memory_bytes" not in arguments(plain)
    offloading = {"kv_offloading_size": 64, "cpu_offload_gb": 10}
    moved = completed(model(LLAMA_7B, "A100-40G", workers=2, engine_kwargs=offloading))
    assert placement_bundles(moved.config)[0]["memory"] == 4 * GIB + (64 + 2 * 10) * GIB


def test_tables_that_vllm_pins_on_the_host_are_reserved_there() -> None:
    one = completed(model("Qwen/Qwen3.8-Flash-Next", "H200", workers=4))
    assert placement_bundles(one.config)[0]["memory"] > 95 * GIB


def test_a_single_worker_is_the_engines_process_unless_ray_has_it() -> None:
    """Replica, engine and two workers took 3.8 GB resident, and 3.2 were reserved."""
    ray = {"engine_kwargs": {"distributed_executor_backend": "ray"}}
    for engine, reserved in (({}, 2 * GIB), (ray, 3 * GIB)):
        one = completed(model(LLAMA_7B, "A100-40G", **engine))
        assert placement_bundles(one.config)[0]["memory"] == reserved


def test_on_this_machine_nothing_is_reserved_but_the_cache_has_its_size() -> None:
    one = completed(model(SMALL, "CPU"), reserve=False)
    assert arguments(one)["kv_cache_memory_bytes"] == GIB
    assert "memory" not in placement_bundles(one.config)[0]


def test_a_node_is_chosen_by_it() -> None:
    """Weights of 12.6 GiB, a sequence, processes: a node of 8 GiB would be killed."""
    plan = planned([model(LLAMA_7B, "CPU")], stack(pool("cpu", "CPU")), facts=None)
    assert plan.pools[0].instance_types == ("r7i.xlarge",), "32 GiB; the cheaper c7i.xlarge has 8"


def test_the_plan_gives_the_application_the_completed_file() -> None:
    plan = planned([model(SMALL, "CPU")], stack(pool("cpu", "CPU")), facts=None)
    given = plan.models[0].application.args["model"]
    assert given["engine_config"]["engine_kwargs"]["kv_cache_memory_bytes"] == GIB
    assert given["deployment_config"]["ray_actor_options"]["memory"] == plan.models[0].bundles[0]["memory"]
