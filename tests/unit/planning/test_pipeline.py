"""Replicas over several nodes: bundles, memory by stage, their one zone and a network that keeps up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.kubernetes.manifests.network import RAY_PODS, network_policies
from modelfleet.infra.planning.facts import ModelFacts, catalog_facts
from modelfleet.infra.planning.fit import gpu_memory, sequence_bytes, setting_of, weight_bytes
from modelfleet.infra.planning.host_memory import GIB, with_host_memory
from modelfleet.infra.planning.length import with_length
from modelfleet.infra.planning.memory.stages import layers_of
from modelfleet.serving.config.errors import InputErrors, Severity
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.serve_options import actor_options, placement_bundles, placement_strategy
from modelfleet.serving.engine_args import engine_arguments
from tests.unit.planning.builders import model, planned, pool, stack

CATALOG = default_catalog()
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
ONE_ZONE: dict[str, Any] = {"zones": ["us-east-1a"]}


def piped(
    model_id: str = LLAMA, accelerator: str = "L4", workers: int = 2, stages: int = 2, **keys: Any
) -> LoadedModel:
    kwargs = {"pipeline_parallel_size": stages, **keys.pop("engine_kwargs", {})}
    return model(model_id, accelerator, workers=workers, strategy="PACK", engine_kwargs=kwargs, **keys)


def facts_of(one: LoadedModel) -> ModelFacts:
    facts = catalog_facts([one.config], CATALOG)[one.config.model_id]
    assert facts is not None
    return facts


def refusals(one: LoadedModel, **keys: Any) -> list[str]:
    facts = {one.config.model_id: facts_of(one)}
    with pytest.raises(InputErrors) as raised:
        planned([one], stack(pool(accelerator=one.config.accelerator, **keys)), facts=facts)
    return [f"{one.path}: {one.message}" for one in raised.value.findings]


@pytest.mark.parametrize(
    ("layers", "stages", "counts"),
    # As `get_pp_indices` of vLLM 0.32 answered.
    [
        (32, 2, [16, 16]),
        (61, 2, [31, 30]),
        (61, 4, [15, 15, 16, 15]),
        (62, 4, [15, 16, 16, 15]),
        (63, 4, [16, 16, 16, 15]),
    ],
)
def test_layers_that_do_not_divide_go_before_the_last_stage(layers: int, stages: int, counts: list[int]) -> None:
    found = layers_of(layers, stages)
    assert [len(one) for one in found] == counts
    assert [layer for one in found for layer in one] == list(range(layers))


def test_a_stage_is_a_bundle_on_a_node_of_its_own_and_the_replica_is_in_the_first() -> None:
    one = piped(workers=4, cpus=2, actor={"memory": 2**30}).config
    first, second = placement_bundles(one)
    assert first == {"CPU": 5, "GPU": 2, "memory": 2**29, "accelerator_type:L4": 0.003}
    assert second == {"CPU": 4, "GPU": 2, "memory": 2**29, "accelerator_type:L4": 0.002}
    assert placement_strategy(one) == "STRICT_SPREAD" and actor_options(one)["num_gpus"] == 2
    arguments = engine_arguments(one, "/weights")
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (2, 2)


def test_the_first_stage_has_the_embedding_and_the_last_the_head() -> None:
    """A stage of Llama-3.1-8B is 16 of 32 layers and one of its two tables of 128,256 rows; the last norm is 8 KiB."""
    one, whole = piped(), model(LLAMA)
    facts, card = facts_of(one), CATALOG.accelerators["L4"]
    setting = setting_of(one.config, facts, card)
    stages = [dataclasses.replace(setting, stage=stage) for stage in (0, 1)]
    first, last = (weight_bytes(facts, stage) for stage in stages)
    assert first + last == weight_bytes(facts, setting_of(whole.config, facts, card))
    assert last - first == 4096 * 2, "only the norm"
    assert {sequence_bytes(facts, stage) for stage in stages} == {setting.length * 2 * 16 * 8 * 128 * 2}
    assert gpu_memory(facts, setting_of(whole.config, facts, card)).full_length_sequences == 0
    assert gpu_memory(facts, setting).full_length_sequences == 1


def test_the_stage_with_the_least_room_decides() -> None:
    """DeepSeek-V3: 61 layers, of which the first three are dense; its stages take 38.4 and 40.9 GiB a GPU."""
    one = piped("deepseek-ai/DeepSeek-V3", "H100", workers=16, max_total_tokens=2048)
    facts, setting = facts_of(one), setting_of(one.config, facts_of(one), CATALOG.accelerators["H100"])
    held = [round(weight_bytes(facts, dataclasses.replace(setting, stage=stage)) / 2**30, 1) for stage in (0, 1)]
    assert held == [38.4, 40.9]
    found = gpu_memory(facts, setting)
    assert round(found.weights_mib / 1024, 1) == 40.9, (
        "the last one has less room, and fewer layers do not make up for it"
    )


def test_a_stage_on_processors_has_room_for_its_weights_and_a_whole_sequence() -> None:
    """Half of Llama-3.1-8B's weights are 7.5 GiB, and half of what 65,536 tokens take (128 KiB each) is 4 GiB."""
    one = piped(accelerator="CPU", max_total_tokens=65536)
    made = with_host_memory(one.config, facts_of(one), reserve=True)
    assert made.engine_config.engine_kwargs["kv_cache_memory_bytes"] == 4 * GIB
    assert all(bundle["memory"] > (7.4 + 4) * GIB for bundle in placement_bundles(made))


def test_a_stage_on_processors_is_as_long_as_its_own_cache() -> None:
    """1 GiB is 16,384 tokens of 64 KiB in the half of the layers that a stage has."""
    one = piped(accelerator="CPU", engine_kwargs={"kv_cache_memory_bytes": GIB})
    length = with_length(one.config, facts_of(one), CATALOG).engine_config.length
    assert length is not None and 16_000 <= length <= 16_384


def test_the_plan_takes_a_node_for_each_stage() -> None:
    one = piped(replicas=(1, 3))
    made = planned([one], stack(pool(instanceTypes=["g6.4xlarge"], **ONE_ZONE)), facts={LLAMA: facts_of(one)})
    assert (made.pools[0].min_nodes, made.pools[0].needed_nodes) == (2, 6)
    planned_model = made.models[0]
    assert planned_model.placement_strategy == "STRICT_SPREAD" and len(planned_model.bundles) == 2
    large = stack(pool(instanceTypes=["g6.12xlarge"], **ONE_ZONE))
    spread = planned([one], large, facts={LLAMA: facts_of(one)}).models[0]
    assert (planned_model.replicas_per_node, spread.replicas_per_node) == (0, 0), (
        "also where a node had room for it all"
    )
    assert planned_model.speed is None, "nobody measured one"


@pytest.mark.parametrize(
    ("zones", "words"),
    [
        ({}, "is not set, which means all zones"),
        ({"zones": ["us-east-1a", "us-east-1b"]}, "found us-east-1a, us-east-1b"),
    ],
)
def test_one_replica_never_stands_in_two_zones(zones: dict[str, Any], words: str) -> None:
    (found,) = refusals(piped(), instanceTypes=["g6.4xlarge"], **zones)
    assert words in found and "name one zone" in found


def test_in_a_cluster_that_exists_the_labels_of_its_nodes_decide_on_zones() -> None:
    for zones in ({}, ONE_ZONE):
        made = stack(pool(instanceTypes=["g6.4xlarge"], **zones), target="kubernetes")
        notices = planned([piped()], made, facts={LLAMA: facts_of(piped())}).notices
        (found,) = [one for one in notices if "which must be in one zone" in one.message]
        assert found.severity is Severity.WARNING and "label nodes of one zone alone" in found.message


def test_fewer_cpus_are_no_hint_for_a_replica_that_no_single_node_has() -> None:
    """The figures of the hint are those of one node with the whole replica, and its stages fit the cheaper one as is."""
    whole = model("org/whole", workers=4, cpus=22)
    notices = planned([whole, piped(workers=4, cpus=20)], stack(pool(**ONE_ZONE)), facts={}).notices
    hints = [found for found in notices if "a replica would fit g6.12xlarge" in found.message]
    assert [found.file for found in hints] == [whole.file]


def test_a_network_that_holds_the_pipeline_up_is_refused_with_the_price_of_a_faster_one() -> None:
    """2.5 Gbit/s carry 2,048 tokens of 4,096 values and their residual in 0.11 s; an L40S computes its half in 0.09 s."""
    (found,) = refusals(piped(accelerator="L40S"), instanceTypes=["g6e.xlarge"], **ONE_ZONE)
    assert found.startswith(
        "engine_config.engine_kwargs.pipeline_parallel_size: found 2, but g6e.xlarge has 2.5 Gbit/s"
    )
    assert "write instanceTypes: [g6e.2xlarge] (5 Gbit/s" in found and "USD/h)" in found


def test_layers_that_keep_different_caches_are_not_planned_by_stage() -> None:
    (found,) = refusals(piped("openai/gpt-oss-120b", "H100"), instanceTypes=["p5.4xlarge"], **ONE_ZONE)
    assert "keep different caches" in found


def test_tls_between_rays_processes_does_not_cover_the_stages() -> None:
    made = stack(
        pool(instanceTypes=["g6.4xlarge"], **ONE_ZONE),
        kubernetes={"image": "registry.example/serving:1", "rayTls": True},
    )
    notices = planned([piped()], made, facts={LLAMA: facts_of(piped())}).notices
    assert any("believe whoever reaches their ports" in one.message for one in notices)


def test_vllms_ports_are_open_between_rays_pods_and_to_nobody_else() -> None:
    """vLLM takes whichever ports are free."""
    one = piped()
    made = planned([one], stack(pool(instanceTypes=["g6.4xlarge"], **ONE_ZONE)), facts={LLAMA: facts_of(one)})
    policy = next(one for one in network_policies(made) if one["metadata"]["name"] == "ray")
    ray = {"podSelector": RAY_PODS}
    everywhere = [rule["from"] for rule in policy["spec"]["ingress"] if "ports" not in rule]
    assert everywhere == [[ray]] and {"to": [ray]} in policy["spec"]["egress"]


def test_this_machine_is_one_node() -> None:
    one = piped(accelerator="CPU")
    with pytest.raises(InputErrors) as raised:
        planned([one], stack(pool(accelerator="CPU"), target="local", region=None), facts={})
    assert any("this machine is one node" in finding.message for finding in raised.value.findings)
