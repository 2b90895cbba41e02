"""Several replicas on one card: what each may take of it, how many fit, what one costs."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.cards import CONTEXT_MIB, WHOLE_CARD, share_of_part
from modelfleet.infra.planning.facts import catalog_facts
from modelfleet.serving.config.errors import InputErrors
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import GPU_PARTS
from tests.unit.planning.builders import model, planned, pool, stack

CATALOG = default_catalog()
SMALL = "Qwen/Qwen3-0.6B"
XLARGE = pool(instanceTypes=["g6.xlarge"])


def part(gpus: float, model_id: str = SMALL, **keys: Any) -> LoadedModel:
    return model(model_id, gpus=gpus, cpus=0, actor={"num_cpus": 0.5}, max_total_tokens=2048, **keys)


def plan_of(*models: LoadedModel, **keys: Any) -> Plan:
    return planned(models, stack(XLARGE, **keys), facts=catalog_facts([one.config for one in models], CATALOG))


@pytest.mark.parametrize("accelerator", [one for one in CATALOG.accelerators.values() if one.name != "CPU"])
@pytest.mark.parametrize("gpus", GPU_PARTS)
def test_all_replicas_on_a_card_fit_it_with_their_contexts(accelerator: Any, gpus: float) -> None:
    mib = accelerator.usable_mib
    share = share_of_part(gpus, WHOLE_CARD, mib)
    assert (share * mib + CONTEXT_MIB) / gpus <= WHOLE_CARD * mib
    assert (share * mib + CONTEXT_MIB) / gpus > (WHOLE_CARD - 0.01 / gpus) * mib, "and leave nothing unused"


def test_the_engine_gets_the_share_that_the_plan_counts_with() -> None:
    (planned_model,) = plan_of(part(0.25)).models
    kwargs = planned_model.application.args["model"]["engine_config"]["engine_kwargs"]
    usable = CATALOG.accelerators["L4"].usable_mib
    assert kwargs["gpu_memory_utilization"] == share_of_part(0.25, WHOLE_CARD, usable) == 0.22
    memory = planned_model.memory
    assert memory is not None
    taken = memory.weights_mib + memory.kv_cache_mib + memory.reserve_mib
    assert taken == pytest.approx(0.22 * usable)
    assert planned_model.bundles[0]["GPU"] == 0.25


def test_a_share_that_the_file_names_stays() -> None:
    (planned_model,) = plan_of(part(0.25, engine_kwargs={"gpu_memory_utilization": 0.2})).models
    assert planned_model.application.args["model"]["engine_config"]["engine_kwargs"]["gpu_memory_utilization"] == 0.2


def test_a_whole_card_has_vllms_own_share() -> None:
    (planned_model,) = plan_of(part(1)).models
    assert "gpu_memory_utilization" not in planned_model.application.args["model"]["engine_config"]["engine_kwargs"]


def test_four_quarters_are_one_node_and_a_fifth_another_each_at_a_quarter_of_its_price() -> None:
    four, five = (plan_of(part(0.25, replicas=(count, count))) for count in (4, 5))
    assert (four.pools[0].min_nodes, five.pools[0].min_nodes) == (1, 2)
    assert four.models[0].replicas_per_node == 4
    price = four.pools[0].cost.min_usd_per_hour
    assert price is not None
    assert four.models[0].cost.min_usd_per_hour == pytest.approx(price)
    two = plan_of(part(0.25), part(0.5, "Qwen/Qwen3-1.7B"))
    assert [one.cost.max_usd_per_hour for one in two.models] == [
        pytest.approx(price / 3, rel=1e-3),
        pytest.approx(2 * price / 3, rel=1e-3),
    ]


def test_what_does_not_fit_its_part_is_refused_with_the_part_that_carries_it_and_its_price() -> None:
    with pytest.raises(InputErrors) as caught:
        plan_of(part(0.125, "Qwen/Qwen3-1.7B"))
    (fault,) = [one for one in caught.value.findings if "does not fit" in one.message]
    assert "num_gpus_per_worker: 0.25: " in fault.message or "num_gpus_per_worker: 0.5: " in fault.message
    assert "gpu_memory_utilization: 0.95" not in fault.message and "num_workers: 2" not in fault.message
