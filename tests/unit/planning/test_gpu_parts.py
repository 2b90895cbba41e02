"""Several replicas on one card: what each may take of it, how many fit, what one costs."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.cards import CONTEXT_MIB, WHOLE_CARD, Card, Gpus, share_of_part
from modelfleet.infra.planning.facts import catalog_facts
from modelfleet.infra.planning.local import Machine
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


@pytest.mark.parametrize("accelerator", ["L4", "H100"])
def test_a_files_own_share_leaves_the_replicas_room_for_their_contexts(accelerator: str) -> None:
    """Equal to the part, four quarters and their contexts take more than the card."""
    made = stack(pool("p", accelerator))
    most = share_of_part(0.25, WHOLE_CARD, CATALOG.accelerators[accelerator].usable_mib)
    for facts in ({}, catalog_facts([part(0.25).config], CATALOG)):
        for share, refused in ((0.25, True), (most + 0.01, True), (most, False)):
            one = part(0.25, accelerator=accelerator, engine_kwargs={"gpu_memory_utilization": share})
            found = []
            try:
                planned([one], made, facts=facts)
            except InputErrors as error:
                found = [one for one in error.findings if one.path.endswith("gpu_memory_utilization")]
            assert [f"up to {most:g}" in one.message for one in found] == [True] * refused


def test_a_null_names_no_share() -> None:
    (planned_model,) = plan_of(part(0.25, engine_kwargs={"gpu_memory_utilization": None})).models
    assert planned_model.application.args["model"]["engine_config"]["engine_kwargs"]["gpu_memory_utilization"] == 0.22


SMALLER = pool(instanceTypes=["g6.xlarge"], fallback=[{"accelerator": "T4", "instanceTypes": ["g4dn.xlarge"]}])
HALF = {"dtype": "half"}


@pytest.mark.parametrize(
    ("kwargs", "there", "expected"),
    [
        (HALF, None, share_of_part(0.5, WHOLE_CARD, CATALOG.accelerators["T4"].usable_mib)),
        ({**HALF, "gpu_memory_utilization": 0.4}, None, 0.4),
        (HALF, {"gpu_memory_utilization": 0.44}, 0.44),
        ({**HALF, "gpu_memory_utilization": 0.4}, {"gpu_memory_utilization": None}, 0.45),
    ],
    ids=["from the card", "the file's", "the fallback's own", "taken back there"],
)
def test_on_a_fallback_a_part_is_a_part_of_that_card(kwargs: Any, there: Any, expected: float) -> None:
    """The first card's share would leave a smaller card no room for the contexts."""
    entry = [{"accelerator": "T4", "engine_kwargs": there}] if there else []
    one = part(0.5, engine_kwargs=kwargs, fallback=entry)
    (made,) = planned([one], stack(SMALLER), facts=catalog_facts([one.config], CATALOG)).models
    (other,) = made.fallbacks
    usable = CATALOG.accelerators["T4"].usable_mib
    assert other.memory and other.memory.free_mib == pytest.approx(usable * (1 - expected))
    shares = [card["engine_kwargs"]["gpu_memory_utilization"] for card in made.application.args["cards"]]
    assert shares == [kwargs.get("gpu_memory_utilization", 0.46), expected]
    assert expected < 0.46, "the L4's"


def test_a_fallbacks_own_share_is_held_against_that_card() -> None:
    one = part(
        0.5, engine_kwargs=HALF, fallback=[{"accelerator": "T4", "engine_kwargs": {"gpu_memory_utilization": 0.46}}]
    )
    with pytest.raises(InputErrors, match="on T4, on which pool l4 falls back: found 0.46.*allowed is up to 0.45"):
        planned([one], stack(SMALLER), facts=catalog_facts([one.config], CATALOG))


def here(models: Any, others_mib: int = 0, count: int = 1) -> Plan:
    """The plan of a local stack on so many H100 of which others use something."""
    cards = tuple(Card(f"GPU-{number}", "NVIDIA H100 80GB HBM3", 81559, (9, 0), others_mib) for number in range(count))
    local = stack(pool("h100", "H100", maxNodes=1), target="local", accountId=None, region=None, kubernetes={})
    facts = catalog_facts([one.config for one in models], CATALOG)
    return planned(models, local, facts=facts, machine=Machine(2**40, Gpus(cards, "580.65.06")), deploying=False)


def test_parts_of_a_card_that_others_use_are_parts_of_what_they_leave() -> None:
    """vLLM's own share of a whole card is free beside 5 GiB of an H100; all parts together are more than that share."""
    usable, others = CATALOG.accelerators["H100"].usable_mib, 5 * 1024
    (made,) = here([part(0.5, accelerator="H100")], others).models
    share = made.application.args["model"]["engine_config"]["engine_kwargs"]["gpu_memory_utilization"]
    assert 2 * (share * usable + CONTEXT_MIB) + others <= usable


def test_five_quarters_are_more_than_a_card_of_this_machine() -> None:
    assert here([part(0.25, accelerator="H100", replicas=(4, 4))]).models
    with pytest.raises(InputErrors, match=r"take 1.25 GPUs.*has 1 .*num_gpus_per_worker: 0.5"):
        here([part(0.25, accelerator="H100", replicas=(5, 5))])


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


def test_two_models_share_one_card_of_this_machine_as_long_as_their_parts_are_one() -> None:
    """Half and a quarter fit with their contexts; another half is refused with the sum and what to do."""
    half, quarter = part(0.5, "Qwen/Qwen3-1.7B", accelerator="H100"), part(0.25, accelerator="H100")
    made = here([half, quarter])
    assert made.cards and made.cards.gpus == 1
    shares = {
        one.bundles[0]["GPU"]: one.application.args["model"]["engine_config"]["engine_kwargs"]["gpu_memory_utilization"]
        for one in made.models
    }
    usable = CATALOG.accelerators["H100"].usable_mib
    assert shares == {gpus: share_of_part(gpus, WHOLE_CARD, usable) for gpus in (0.5, 0.25)}
    assert sum(shares.values()) * usable + 2 * CONTEXT_MIB <= 0.75 * WHOLE_CARD * usable
    more = part(0.5, "HuggingFaceTB/SmolLM2-1.7B-Instruct", accelerator="H100")
    with pytest.raises(
        InputErrors, match=r"the models take 1.25 GPUs at their fewest replicas, and this machine has 1"
    ):
        here([half, quarter, more])
    assert here([half, quarter, more], count=2).models
