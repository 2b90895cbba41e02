"""USD per hour: sums add up, unknown prices stay unknown, and a budget holds."""

from __future__ import annotations

import pytest

from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.nodes import allocatable_cpu_millis, allocatable_memory_mib
from modelfleet.serving.config.errors import InputErrors
from tests.unit.planning.builders import model, planned, pool, stack

XLARGE = pool(instanceTypes=["g6.xlarge"])


def test_the_parts_add_up_to_the_whole() -> None:
    """0.8048 per g6.xlarge, plus 0.10 for EKS, 2 × 0.2016 for m7i.xlarge, 0.045 for one NAT gateway and
    0.005 for its address, and 0.00137 for each of the two KMS keys."""
    plan = planned([model("org/a", replicas=(1, 2)), model("org/b", replicas=(0, 3))], stack(XLARGE))
    assert plan.cost.min_usd_per_hour == pytest.approx(0.8048 + 0.1 + 2 * 0.2016 + 0.045 + 0.005 + 2 * 0.00137)
    assert plan.cost.max_usd_per_hour == pytest.approx(5 * 0.8048 + 0.55594)
    assert sum(m.cost.max_usd_per_hour or 0 for m in plan.models) == pytest.approx(plan.pools[0].cost.max_usd_per_hour)
    assert [m.cost.min_usd_per_hour for m in plan.models] == [pytest.approx(0.8048), 0.0]


def test_idle_is_the_minimum_over_730_hours() -> None:
    plan = planned([model(replicas=(0, 1))], stack(XLARGE))
    assert plan.idle_usd_per_month == pytest.approx(730 * 0.55594)


def test_a_budget_below_the_maximum_is_refused_with_the_most_expensive_pool() -> None:
    with pytest.raises(InputErrors) as caught:
        planned([model(replicas=(1, 8))], stack(XLARGE, budget={"maxUsdPerHour": 5}))
    assert caught.value.findings[0].sentence() == (
        "stacks/Pulumi.test.yaml:17: modelfleet:budget.maxUsdPerHour: found 5; at its maximum the stack costs "
        "6.99 USD/h, most of it pool l4 (6.44); lower its maxNodes or max_replicas, or raise the budget"
    )


def test_a_region_without_prices_is_unknown_not_free() -> None:
    plan = planned([model()], stack(XLARGE, region="eu-central-1", budget={"maxUsdPerHour": 5}))
    assert plan.cost.max_usd_per_hour is None
    assert plan.prices == "no price is known for eu-central-1"
    assert _about_the_budget(plan) == (
        "cannot be checked: no price in eu-central-1 is known for pool l4 (g6.xlarge), system nodes (m7i.xlarge), "
        "NAT gateways (without traffic); run `modelfleet plan --stack test` with AWS credentials to read it from AWS, "
        "or remove the budget"
    )


def test_a_budget_that_cannot_be_checked_names_only_the_prices_that_are_missing() -> None:
    block = pool("block", "A100-40G", purchase="capacity-block", capacityReservationId="cr-0123456789abcdef0")
    plan = planned([model()], stack(XLARGE, block, budget={"maxUsdPerHour": 5}))
    assert _about_the_budget(plan) == (
        "cannot be checked: pool block has a Capacity Block, which has no hourly price; remove the budget"
    )


def test_a_budget_of_an_existing_cluster_names_the_missing_region_and_instance_types() -> None:
    sized = pool("own", "CPU", node={"cpus": 8, "memoryGib": 32})
    plan = planned(
        [model()], stack(XLARGE, sized, target="kubernetes", region=None, budget={"maxUsdPerHour": 5}), deploying=False
    )
    assert _about_the_budget(plan) == (
        "cannot be checked: pool own gives `node`, not instanceTypes, so it has no price; no region is set, so there "
        "is no price for pool l4 (g6.xlarge); run `pulumi config set aws:region REGION`, or remove the budget"
    )


def _about_the_budget(plan: Plan) -> str:
    return next(notice.message for notice in plan.notices if "budget" in notice.path)


def test_an_unpriced_region_still_gets_the_cheapest_type_by_the_ratios_of_us_east_1() -> None:
    assert planned([model()], stack(pool(), region="eu-central-1")).pools[0].instance_types == ("g6.xlarge",)


def test_spot_is_counted_at_its_ceiling_and_the_plan_says_so() -> None:
    plan = planned([model()], stack(pool(purchase="spot", instanceTypes=["g6.xlarge"])))
    assert "spot counted at its ceiling" in plan.prices


def test_a_capacity_block_has_no_hourly_price() -> None:
    """It was paid for at reservation."""
    block = pool("b", "A100-40G", purchase="capacity-block", capacityReservationId="cr-0123456789abcdef0")
    assert planned([], stack(block)).pools[0].usd_per_node_hour is None


def test_this_machine_costs_nothing_per_hour() -> None:
    plan = planned([model("org/cpu", "CPU")], stack(pool("cpu", "CPU"), target="local", region=None))
    assert (plan.cost.max_usd_per_hour, plan.fixed) == (0.0, ())


@pytest.mark.parametrize(("vcpus", "millis"), [(4, 3920), (96, 95690), (2, 1930), (8, 7910)])
def test_allocatable_cpu_matches_eks_nodes(vcpus: int, millis: int) -> None:
    """4 and 96: platform.md; 2 and 8: Karpenter's instance-type reference (m7i.large, m7i.2xlarge)."""
    assert allocatable_cpu_millis(vcpus) == millis


def test_allocatable_memory_is_karpenters_lower_bound() -> None:
    """g5.xlarge: 16 GiB, 58 pods, 14162 MiB in Karpenter's reference."""
    assert allocatable_memory_mib(16384, 58) == 14162
