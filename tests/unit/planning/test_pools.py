"""Which pool and node a model gets, and the messages if it gets none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.facts import catalog_facts
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import InputErrors, Severity
from modelfleet.serving.config.load import LoadedModel
from tests.unit.planning.builders import model, planned, pool, stack


def refusals(models: Sequence[LoadedModel], made: LoadedStack) -> list[str]:
    """The messages of a refused plan."""
    with pytest.raises(InputErrors) as caught:
        planned(models, made)
    return [finding.sentence() for finding in caught.value.findings]


def test_the_cheapest_type_that_fits_the_replica_is_taken() -> None:
    """One replica needs 1 + 8 CPUs: more than g6.2xlarge has, so g6.4xlarge, not the more expensive gr6.4xlarge."""
    plan = planned([model(cpus=8)], stack(pool()))
    assert plan.pools[0].instance_types == ("g6.4xlarge",)
    assert plan.pools[0].usd_per_node_hour == 1.3232


def test_what_the_replica_itself_asks_is_counted() -> None:
    """RayLLM's 1 + 8 CPUs never fit an eight-core node, so replicas waited forever (rayllm.md, section 3)."""
    sentence = refusals([model(cpus=7)], stack(pool(instanceTypes=["g6.2xlarge"])))[0]
    assert sentence.startswith("models/org--model.yaml:")
    assert "one replica asks for 8 CPU, 1 GPU, 2.0 GiB memory; g6.2xlarge offers 7 CPU, 1 GPU" in sentence
    assert "instanceTypes: [g6.4xlarge] (1.32 USD/h)" in sentence


def test_two_models_share_a_node_when_that_is_cheaper() -> None:
    """One g6.12xlarge at 4.60 fits both; a node each would cost 4.60 + 0.80."""
    plan = planned([model("org/large", workers=3), model("org/small")], stack(pool()))
    assert plan.pools[0].instance_types == ("g6.12xlarge",)
    assert (plan.pools[0].min_nodes, plan.pools[0].needed_nodes) == (1, 1)


def test_a_missing_pool_is_reported_at_the_pools_with_the_entry_to_append() -> None:
    sentences = refusals([model("org/big", "A100-80G", replicas=(1, 3))], stack(pool()))
    assert sentences == [
        "stacks/Pulumi.test.yaml:6: modelfleet:pools: no pool has A100-80G, which org/big needs; "
        "append {name: a100-80g, accelerator: A100-80G, maxNodes: 3} at the end of the list"
    ]


def test_max_nodes_below_min_replicas_is_an_error_with_the_number_that_works() -> None:
    sentences = refusals([model(replicas=(3, 3))], stack(pool(maxNodes=2, instanceTypes=["g6.xlarge"])))
    assert sentences == [
        "stacks/Pulumi.test.yaml:9: modelfleet:pools[0].maxNodes: found 2; "
        "min_replicas (org/model 3) need 3 nodes; write 3"
    ]


def test_max_nodes_below_max_replicas_is_a_warning_and_caps_the_cost() -> None:
    """Several models can share a limit if they do not all reach it at once."""
    plan = planned([model(replicas=(1, 5))], stack(pool(maxNodes=2, instanceTypes=["g6.xlarge"])))
    assert plan.pools[0].needed_nodes == 5
    assert plan.pools[0].cost.max_usd_per_hour == pytest.approx(2 * 0.8048)
    assert [n.message for n in plan.notices if n.severity is Severity.WARNING] == [
        "found 2; max_replicas of all its models at once would take 5 nodes, so replicas beyond 2 nodes wait; "
        "raise it or lower max_replicas"
    ]


def test_few_large_nodes_are_taken_if_max_nodes_allows_no_more() -> None:
    """Three replicas on at most two nodes: one g6.12xlarge, though three g6.xlarge would be cheaper."""
    plan = planned([model(replicas=(3, 3))], stack(pool(maxNodes=2)))
    assert plan.pools[0].instance_types == ("g6.12xlarge",)


def test_models_fill_pools_of_the_same_accelerator_in_their_order() -> None:
    """For example, a small reserved pool first and spot for the rest."""
    pools = (
        pool("steady", maxNodes=2, instanceTypes=["g6.xlarge"]),
        pool("spot", purchase="spot", instanceTypes=["g6.xlarge"]),
    )
    plan = planned([model(f"org/{name}") for name in "abc"], stack(*pools))
    assert {m.model_id: m.pool for m in plan.models} == {"org/a": "steady", "org/b": "steady", "org/c": "spot"}


def test_a_model_too_large_for_the_first_pool_takes_the_next() -> None:
    pools = (pool("small", instanceTypes=["g6.xlarge"]), pool("large", instanceTypes=["g6.12xlarge"]))
    plan = planned([model("org/one"), model("org/four", workers=4)], stack(*pools))
    assert {m.model_id: m.pool for m in plan.models} == {"org/one": "small", "org/four": "large"}


@pytest.mark.parametrize(
    ("types", "sentence"),
    [
        (["g6.xlrge"], "pools[0].instanceTypes[0]: found 'g6.xlrge', which has no L4; did you mean g6.xlarge?"),
        (["g5.xlarge"], "pools[0].instanceTypes[0]: found 'g5.xlarge', which has no L4; did you mean g6.xlarge?"),
        (
            ["g6.xlarge", "g6.12xlarge"],
            "pools[0].instanceTypes: found types with different numbers of GPUs (g6.xlarge has 1, g6.12xlarge has 4); "
            "use one pool per shape",
        ),
    ],
    ids=["misspelt", "other accelerator", "two shapes"],
)
def test_wrong_instance_types_are_reported_at_their_line(types: list[str], sentence: str) -> None:
    assert sentence in refusals([], stack(pool(instanceTypes=types)))[0]


def test_a_resource_that_no_node_offers_is_refused_instead_of_waiting_forever() -> None:
    """ray-llm#143: `resources available: {}`, which nobody answered."""
    sentence = refusals([model(resources={"my_disk": 1.0})], stack(pool()))[0]
    assert "scaling_config.resources_per_worker: asks for my_disk, which no node offers; nodes offer CPU" in sentence


RAY = {"distributed_executor_backend": "ray"}


@pytest.mark.parametrize("strategy", ["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"])
def test_a_replica_is_on_one_node_whatever_its_strategy(strategy: str) -> None:
    """Its weights are fetched on the replica's node only: a worker elsewhere took their folder for a Hub id."""
    one = model(workers=2, strategy=strategy)
    assert "one replica asks for 3 CPU, 2 GPU" in refusals([one], stack(pool(instanceTypes=["g6.xlarge"])))[0]
    plan = planned([one], stack(pool(instanceTypes=["g6.12xlarge"])))
    assert (plan.models[0].replicas_per_node, plan.pools[0].min_nodes, len(plan.models[0].bundles)) == (2, 1, 1)


def test_pack_may_span_nodes_with_rays_executor_and_strict_pack_may_not() -> None:
    two_nodes = pool(instanceTypes=["g6.xlarge"])
    plan = planned([model(workers=2, strategy="PACK", engine_kwargs=RAY)], stack(two_nodes))
    assert (plan.models[0].replicas_per_node, plan.pools[0].min_nodes) == (0, 2)
    assert "one replica asks for 3 CPU, 2 GPU" in refusals([model(workers=2, engine_kwargs=RAY)], stack(two_nodes))[0]


def test_strict_spread_takes_a_node_per_bundle_of_rays_executor() -> None:
    """Three bundles (the replica and two workers) on nodes that could each fit all three."""
    spread = model(workers=2, strategy="STRICT_SPREAD", engine_kwargs=RAY)
    plan = planned([spread], stack(pool(instanceTypes=["g6.12xlarge"])))
    assert plan.pools[0].min_nodes == 3


def test_a_cache_that_shared_memory_cannot_hold_is_refused() -> None:
    """vLLM keeps it in /dev/shm, of which a pod has a quarter of its memory, and ends when it does not fit."""
    node = stack(pool(instanceTypes=["g6.12xlarge"]))
    sentence = refusals([model(engine_kwargs={"kv_offloading_size": 64})], node)[0]
    assert "kv_offloading_size: found 64; it lies in /dev/shm, where g6.12xlarge has 15.5 GiB for it" in sentence
    planned([model(engine_kwargs={"kv_offloading_size": 15})], node)


def test_the_replicas_of_a_node_share_its_memory_for_caches() -> None:
    """Each of them passed alone, and the second one on a node ended."""
    node = pool(instanceTypes=["g6.12xlarge"])
    sentence = refusals([model(replicas=(1, 4), engine_kwargs={"kv_offloading_size": 8})], stack(node))[0]
    assert "found 8 for each of its 4 replicas" in sentence and "write at most 3" in sentence
    planned([model(replicas=(1, 4), engine_kwargs={"kv_offloading_size": 3})], stack(node))
    planned([model(engine_kwargs={"kv_offloading_size": 8})], stack(node))


def test_weights_that_the_disk_of_a_node_does_not_hold_are_refused() -> None:
    """The replica itself would refuse them, after a node was bought."""
    small, name = pool(accelerator="T4", instanceTypes=["g4dn.xlarge"]), "Qwen/Qwen3-32B"
    facts = catalog_facts([model(name).config], default_catalog())

    def said(one: LoadedModel, disk: dict[str, Any]) -> list[str]:
        try:
            planned([one], stack(disk), facts=facts)
        except InputErrors as errors:
            return [line for line in map(str, errors.args[0].splitlines()) if "of disk for its weights" in line]
        return []

    (sentence,) = said(model(name, "T4"), small)
    assert "needs 66 GB of disk for its weights; g4dn.xlarge has 60 GB for them" in sentence
    assert not said(model(name, "T4", engine_kwargs={"load_format": "runai_streamer"}), small)
    assert not said(model(name, "L40S"), pool(accelerator="L40S"))


@pytest.mark.parametrize("section", ["engine", "actor"])
def test_the_plan_bounds_no_cache_in_a_folder_of_the_files_own_choice(section: str) -> None:
    """Its disk is not the node's, and a limit made for that one refused or removed weights there."""
    own: dict[str, Any] = {"runtime_env": {"env_vars": {"MODELFLEET_MODEL_CACHE": "/data"}}}
    keys = own if section == "engine" else {"actor": own}
    name, small = "Qwen/Qwen3-32B", stack(pool(accelerator="T4", instanceTypes=["g4dn.xlarge"]))
    facts = catalog_facts([model(name).config], default_catalog())
    with pytest.raises(InputErrors) as refused:
        planned([model(name, "T4", **keys)], small, facts=facts)
    assert "of disk for its weights" not in str(refused.value)
    one, other = planned([model("org/a", "T4", **keys), model("org/b", "T4")], small).models
    assert "cache_gb" not in one.application.args["weights"] and other.application.args["weights"]["cache_gb"] == 60


def test_memory_of_the_replica_counts() -> None:
    """g6.xlarge offers 13.4 GiB to Ray, g6.2xlarge 28."""
    plan = planned([model(actor={"memory": 20 * 1024**3})], stack(pool()))
    assert plan.pools[0].instance_types == ("g6.2xlarge",)


def test_a_hint_names_a_cheaper_node_that_only_the_cpus_rule_out() -> None:
    plan = planned([model(cpus=8)], stack(pool()))
    hint = next(n for n in plan.notices if "num_cpus_per_worker" in n.path)
    assert hint.message == "found 8; with 6 a replica would fit g6.2xlarge (0.98 instead of 1.32 USD/h)"


def test_gpu_pools_have_the_taint_and_labels_that_the_device_plugin_and_the_autoscaler_need() -> None:
    """A GPU count label of 1 on a node with four, or no label, buys nodes that stay empty (eks.md D3, D5)."""
    made = planned([model(workers=4)], stack(pool())).pools[0]
    assert [(t.key, t.value, t.effect) for t in made.taints] == [("nvidia.com/gpu", "true", "NoSchedule")]
    assert made.labels["nvidia.com/gpu.count"] == "4"
    assert made.labels["k8s.amazonaws.com/accelerator"] == "l4"
    assert made.ray_resources == {"CPU": 47.0, "GPU": 4.0, "accelerator_type:L4": 1.0}


def test_a_cpu_pool_has_no_taint_and_no_gpu() -> None:
    made = planned([model("org/cpu", "CPU", cpus=4)], stack(pool("cpu", "CPU"))).pools[0]
    assert made.taints == ()
    assert "GPU" not in made.ray_resources
    assert not made.instance_types[0].startswith("g")


def test_an_existing_cluster_must_describe_its_nodes() -> None:
    sentence = refusals([model()], stack(pool(), target="kubernetes"))[0]
    assert "give instanceTypes, or `node: {cpus, memoryGib, gpus}`" in sentence


def test_an_existing_clusters_nodes_are_taken_as_given() -> None:
    plan = planned([model(workers=4)], stack(pool(node={"cpus": 32, "memoryGib": 64, "gpus": 4}), target="kubernetes"))
    assert plan.pools[0].node.gpus == 4
    assert plan.cost.max_usd_per_hour is None, (
        "a node without an instance type has no known price, and 0 would be wrong"
    )


@pytest.mark.parametrize(
    ("nodes", "target"),
    [({"instanceTypes": ["g6.2xlarge"]}, "eks"), ({"node": {"cpus": 8, "memoryGib": 32, "gpus": 1}}, "kubernetes")],
)
def test_a_pool_keeps_room_for_daemon_sets_of_ones_own(nodes: dict[str, Any], target: str) -> None:
    """A worker that takes the rest of the node waits forever on one that an agent came to first."""
    reserve = {"cpuMillis": 1200, "memoryMib": 1024}
    usual = planned([model()], stack(pool(**nodes), target=target)).pools[0]
    made = planned([model()], stack(pool(**nodes, reserve=reserve), target=target)).pools[0]
    assert usual.node.cpu_millis - made.node.cpu_millis == 1200
    assert usual.node.memory_mib - made.node.memory_mib == 1024
    assert usual.ray_resources["CPU"] - made.ray_resources["CPU"] in (1, 2)


def test_a_type_is_chosen_that_carries_the_model_next_to_the_reserve() -> None:
    """g6.xlarge has 4 vCPUs, of which Ray gets 3."""
    (small,) = planned([model(cpus=2)], stack(pool())).pools
    (large,) = planned([model(cpus=2)], stack(pool(reserve={"cpuMillis": 1000}))).pools
    assert (small.instance_types, large.instance_types) == (("g6.xlarge",), ("g6.2xlarge",))


def test_a_reserve_that_leaves_a_worker_nothing_is_refused_with_its_line() -> None:
    made = stack(pool(instanceTypes=["g6.xlarge"], reserve={"cpuMillis": 3000}))
    (sentence,) = [one for one in refusals([model()], made) if "reserve" in one]
    assert sentence.startswith("stacks/Pulumi.test.yaml:")
    assert "found cpuMillis 3000 and memoryMib 0, which leave a worker less than one CPU" in sentence
    assert "on g6.xlarge; reserve less, or name larger nodes" in sentence


def test_a_stack_without_api_keys_can_be_planned_but_not_deployed() -> None:
    """An open cluster must be requested explicitly; a forgotten secret must not make one."""
    made = stack(pool(), auth="keys")
    assert "run `modelfleet key add NAME --stack test`" in refusals([model()], made)[0]
    notices = planned([model()], made, deploying=False).notices
    assert [n.severity for n in notices if "apiKeys" in n.path] == [Severity.WARNING]
    planned([model()], stack(pool(), auth="keys", secrets=["apiKeys"]))


def test_an_image_that_no_registry_has_is_reported_before_nodes_wait_for_it() -> None:
    plan = planned([model()], stack(pool(), kubernetes={}))
    assert any("build serving/Dockerfile, push it to a registry" in n.message for n in plan.notices)


def test_all_faults_come_at_once() -> None:
    """No pool, no keys, no region, over the budget: one run reports all of them."""
    made = stack(pool(minNodes=8), region=None, auth="keys")
    text = "\n".join(refusals([model("org/b", "T4")], made))
    assert all(words in text for words in ("no pool has T4", "apiKeys: is not set", "aws:region is missing"))


def test_lora_names_must_differ_from_model_ids() -> None:
    first = model("org/a", lora=[{"name": "org/b", "source": "x/y"}])
    assert "found 'org/b', which models/org--b.yaml already uses" in refusals([first, model("org/b")], stack(pool()))[0]


def test_this_machine_counts_cpus_and_not_memory() -> None:
    """A pure function does not know its memory; a refusal by an invented number would be worse than none."""
    local = stack(pool("cpu", "CPU", maxNodes=1), target="local", region=None, local={"cpus": 4})
    plan = planned([model("org/cpu", "CPU", cpus=3, actor={"memory": 2**40})], local)
    assert (plan.pools[0].node.cpu_millis, plan.models[0].replicas_per_node) == (4000, 1)
    assert "one replica asks for 5 CPU, 1.0 GiB memory; a node offers 4 CPU" in "".join(
        refusals([model("org/cpu", "CPU", cpus=4, actor={"memory": 2**30})], local)
    )
