"""A pool falls back on another accelerator: more rungs, on each of which every model is checked, counted and priced."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.ladder import LONGEST_GROUP
from modelfleet.infra.stack.schema import Pool
from modelfleet.serving.app import AppArgs
from modelfleet.serving.card import on_this_card
from modelfleet.serving.config.errors import Finding, InputErrors, Severity
from modelfleet.serving.engine_args import engine_arguments
from tests.unit.planning.builders import model, planned, pool, stack

LLAMA = "meta-llama/Llama-2-7b-chat-hf"
A10G = {"accelerator": "A10G", "instanceTypes": ["g5.2xlarge"], "purchase": ["spot", "on-demand"]}
LADDER = pool(instanceTypes=["g6.xlarge"], purchase=["spot", "on-demand"], fallback=[A10G])
SMALLER = [{"accelerator": "A10G", "engine_kwargs": {"max_num_seqs": 16, "gpu_memory_utilization": 0.8}}]


def one(**keys: Any) -> Any:
    return model(LLAMA, **keys)


def refused(*arguments: Any, **keys: Any) -> list[Finding]:
    with pytest.raises(InputErrors) as caught:
        planned(*arguments, **keys)
    return list(caught.value.findings)


def test_the_other_cards_rungs_come_after_the_pools_own() -> None:
    (made,) = planned([one()], stack(LADDER), facts=None).pools
    assert [(rung.group, rung.accelerator, rung.purchase, rung.instance_types) for rung in made.rungs] == [
        ("l4_spot", "L4", "spot", ("g6.xlarge",)),
        ("l4", "L4", "on-demand", ("g6.xlarge",)),
        ("l4_a10g_spot", "A10G", "spot", ("g5.2xlarge",)),
        ("l4_a10g", "A10G", "on-demand", ("g5.2xlarge",)),
    ]
    assert [rung.labels["k8s.amazonaws.com/accelerator"] for rung in made.rungs] == ["l4", "l4", "a10g", "a10g"]
    assert [rung.vcpus_per_node for rung in made.rungs] == [4, 4, 8, 8]
    assert made.purchases == "spot, then on-demand, then A10G spot, then A10G on-demand"
    assert [rung.floor_nodes for rung in made.rungs] == [0] * 4, "no group insists on the pool's minimum"


def test_each_rung_costs_what_its_types_cost_and_the_budget_counts_the_dearest() -> None:
    (made,) = planned([one()], stack(LADDER), facts=None).pools
    assert [rung.usd_per_node_hour for rung in made.rungs] == pytest.approx([0.8048, 0.8048, 1.212, 1.212])
    assert made.usd_per_node_hour == pytest.approx(1.212)
    (found,) = refused([model(LLAMA, replicas=(1, 8))], stack(LADDER, budget={"maxUsdPerHour": 8}), facts=None)
    assert f"pool l4 ({8 * 1.212:.2f})" in found.message


def test_behind_a_capacity_block_the_other_cards_price_counts() -> None:
    """The block is paid for; unknown costs would switch the budget off."""
    block = {"capacityReservationId": "cr-0123456789abcdef0", "capacityReservationZone": "us-east-1b"}
    made = planned([one()], stack({**LADDER, "purchase": "capacity-block", **block}), facts=None)
    assert made.pools[0].usd_per_node_hour == pytest.approx(1.212)


def test_a_million_tokens_cost_on_each_card_what_that_card_costs() -> None:
    """The first card's tokens are not dearer because a dearer card stands in for it now and then."""
    alone = planned([one()], stack(pool(instanceTypes=["g6.xlarge"])), facts=None).models[0].speed
    (ladder,) = planned([one()], stack(LADDER), facts=None).models
    (other,) = ladder.fallbacks
    assert alone is not None and ladder.speed is not None and other.speed is not None
    assert ladder.speed.usd_per_million_tokens == alone.usd_per_million_tokens
    rate = other.speed.output_tokens_per_second.expected
    assert other.speed.usd_per_million_tokens == pytest.approx(1.212 / 3600 / rate * 1e6)


def test_a_worker_asks_for_what_the_smallest_node_of_any_card_has() -> None:
    """Ray makes its worker group before anybody knows the rung, so one pod has to fit each."""
    small = planned([one()], stack(pool(instanceTypes=["g6.xlarge"])), facts=None)
    ladder = planned([one()], stack(LADDER), facts=None)
    turned = pool(
        "a10g", "A10G", instanceTypes=["g5.2xlarge"], fallback=[{"accelerator": "L4", "instanceTypes": ["g6.xlarge"]}]
    )
    other = planned([model(LLAMA, "A10G")], stack(turned), facts=None)
    assert ladder.ray_cluster.worker_groups == small.ray_cluster.worker_groups, "no second Ray cluster is built"
    node = small.pools[0].node
    assert (other.pools[0].node.cpu_millis, other.pools[0].node.memory_mib) == (node.cpu_millis, node.memory_mib)
    assert other.pools[0].ray_resources["accelerator_type:A10G"] == 1, "on every rung: the pool's own"


@pytest.mark.parametrize(("nvml", "card"), [("NVIDIA L4", "L4"), ("NVIDIA A10G", "A10G")])
def test_a_replica_runs_with_what_the_plan_counted_for_its_card(nvml: str, card: str) -> None:
    """Both sides of the seam: what the plan writes, read by what runs beside the GPU."""
    made = planned([one(fallback=SMALLER)], stack(LADDER), facts=None).models[0]
    args = AppArgs.model_validate(made.application.args)
    assert args.model.scaling_config.fallback == [], "the arguments travel once, card by card"
    here = on_this_card(args.model, args.cards, lambda text: None, lambda: nvml)
    arguments = engine_arguments(here, "/weights")
    wanted = {"L4": (256, None), "A10G": (16, 0.8)}[card]
    assert (arguments["max_num_seqs"], arguments.get("gpu_memory_utilization")) == wanted
    assert arguments["max_num_batched_tokens"] == 2048, "the card's own, as vLLM would take it"
    (other,) = made.fallbacks
    assert made.memory is not None and other.memory is not None
    usable = default_catalog().accelerators["A10G"].usable_mib
    assert other.memory.free_mib == pytest.approx(0.2 * usable), "counted with the arguments of that card"


def test_without_a_fallback_of_the_pool_an_application_is_as_before() -> None:
    """An entry in the model file alone must restart nothing."""
    plain = planned([one()], stack(pool(instanceTypes=["g6.xlarge"])), facts=None)
    named = planned([one(fallback=SMALLER)], stack(pool(instanceTypes=["g6.xlarge"])), facts=None)
    assert named.models[0].application == plain.models[0].application
    (said,) = [found for found in named.notices if "fallback" in found.path]
    assert said.severity is Severity.NOTICE
    assert said.message.startswith("has no effect on stack test: its pool l4 does not fall back on A10G")


def test_a_model_that_does_not_fit_the_other_card_is_refused_with_the_fix() -> None:
    """Otherwise its first replica on that card would only say it at night, when EC2 has no other."""
    to_t4 = pool(instanceTypes=["g6.xlarge"], fallback=[{"accelerator": "T4", "instanceTypes": ["g4dn.xlarge"]}])
    long = {"max_total_tokens": 4096}
    found = refused([one(**long)], stack(to_t4), facts=None)
    assert [finding.path for finding in found] == ["engine_config.max_total_tokens"]
    assert found[0].message.startswith("on T4, on which pool l4 falls back: does not fit")
    assert found[0].message.endswith("or give it arguments for T4 in scaling_config.fallback")
    kwargs = {"dtype": "bfloat16"}
    (bad,) = refused([one(fallback=[{"accelerator": "T4", "engine_kwargs": kwargs}])], stack(to_t4), facts=None)
    assert bad.path == "scaling_config.fallback[0]" and "write `dtype: half`" in bad.message


def test_nodes_with_another_number_of_gpus_are_refused() -> None:
    """A worker takes all GPUs of its node: two workers would share a larger one, and none fits a smaller one."""
    four = {"accelerator": "A10G", "instanceTypes": ["g5.12xlarge"]}
    (found,) = refused([one()], stack(pool(instanceTypes=["g6.xlarge"], fallback=[four])), facts=None)
    assert "g6.xlarge has 1, g5.12xlarge has 4" in found.message
    wrong = {"accelerator": "A10G", "instanceTypes": ["g6.xlarge"]}
    (found,) = refused([one()], stack(pool(instanceTypes=["g6.xlarge"], fallback=[wrong])), facts=None)
    assert found.message.startswith("found 'g6.xlarge', which has no A10G")
    auto = planned([one()], stack(pool(fallback=[four])), facts=None)
    assert auto.pools[0].node.gpus == 4, "of types that are left open, one with as many"


def test_a_name_that_leaves_no_room_for_the_other_card_is_refused() -> None:
    """EKS allows 63 characters, and Terraform's suffix takes 26."""
    other = {"accelerator": "RTX-PRO-6000", "instanceTypes": ["g7e.2xlarge"], "purchase": "spot"}
    room = LONGEST_GROUP - len("_rtx-pro-6000_spot")
    (made,) = planned([], stack(pool("a" * room, instanceTypes=["g6.xlarge"], fallback=[other]))).pools
    assert len(f"{made.rungs[-1].group}-a-") + 26 == 63
    (found,) = refused([], stack(pool("a" * (room + 1), instanceTypes=["g6.xlarge"], fallback=[other])))
    assert found.message.startswith(f"found {room + 1} characters") and f"at most {room} are left" in found.message


def test_where_the_stack_makes_no_nodes_a_fallback_is_warned_of() -> None:
    for target, said in (
        ("kubernetes", "found A10G, but target kubernetes makes no nodes"),
        ("local", "has no effect"),
    ):
        made = planned([one()], stack(LADDER, target=target), facts=None)
        (message,) = [found.message for found in made.notices if found.path.endswith("fallback")]
        assert message.startswith(said)
    assert made.models[0].application.args.get("cards") is None, "this machine has one card"


@pytest.mark.parametrize(
    ("fallback", "said"),
    [
        ([{"accelerator": "L4", "instanceTypes": ["g6.xlarge"]}], "found L4, the pool's own"),
        ([A10G, A10G], "found A10G twice"),
        ([{"accelerator": "A10G"}], "Field required"),
        ([{**A10G, "purchase": "reservation"}], "Input should be"),
        ([{**A10G, "purchase": ["spot", "spot"]}], "found spot twice"),
    ],
    ids=["own", "twice", "no-types", "reservation", "purchase-twice"],
)
def test_a_fallback_that_cannot_be_made_is_refused(fallback: list[Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Pool.model_validate(pool(fallback=fallback))
