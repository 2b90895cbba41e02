"""A pool is no single bet: its purchases become rungs, in their order, each with its price and its node groups."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from modelfleet.infra.planning.ladder import SUFFIXES, group_name
from modelfleet.infra.stack.schema import Pool
from modelfleet.serving.config.errors import InputErrors
from tests.unit.planning.builders import model, planned, pool, stack

TYPES = ["g6.xlarge", "g6.2xlarge"]
RESERVATION = {"capacityReservationId": "cr-0123456789abcdef0", "capacityReservationZone": "us-east-1b"}
LADDER = pool(instanceTypes=TYPES, purchase=["reservation", "spot", "on-demand"], **RESERVATION)


def test_each_purchase_is_a_rung_in_the_stack_files_order() -> None:
    (made,) = planned([model()], stack(LADDER)).pools
    assert [(rung.group, rung.purchase, rung.instance_types, rung.zones) for rung in made.rungs] == [
        ("l4_odcr", "reservation", ("g6.xlarge",), ("us-east-1b",)),
        ("l4_spot", "spot", ("g6.xlarge", "g6.2xlarge"), None),
        ("l4", "on-demand", ("g6.xlarge", "g6.2xlarge"), None),
    ]
    assert [rung.capacity_reservation_id for rung in made.rungs] == ["cr-0123456789abcdef0", None, None]


def test_a_rung_costs_what_its_dearest_type_costs() -> None:
    """0.8048 for g6.xlarge, 0.9776 for g6.2xlarge; spot counts at its ceiling."""
    (made,) = planned([model()], stack(LADDER)).pools
    assert [rung.usd_per_node_hour for rung in made.rungs] == pytest.approx([0.8048, 0.9776, 0.9776])


def test_the_budget_counts_the_dearest_rung_that_may_run() -> None:
    with pytest.raises(InputErrors) as caught:
        planned([model(replicas=(1, 8))], stack(LADDER, budget={"maxUsdPerHour": 8.2}))
    assert f"pool l4 ({8 * 0.9776:.2f})" in caught.value.findings[0].message, "not 8 × 0.8048 of the reservation"


def test_a_ladder_with_a_capacity_block_is_counted_at_what_its_other_rungs_cost() -> None:
    """The block is paid for; the other rungs may still buy every node of the pool."""
    block: dict[str, Any] = {"purchase": ["capacity-block", "on-demand"], **RESERVATION}
    (made,) = planned([model()], stack(pool(instanceTypes=TYPES, **block))).pools
    assert [rung.usd_per_node_hour for rung in made.rungs] == [None, pytest.approx(0.9776)]
    assert made.usd_per_node_hour == pytest.approx(0.9776)
    with pytest.raises(InputErrors, match="budget"):
        planned([model()], stack(pool(instanceTypes=TYPES, **block), budget={"maxUsdPerHour": 0.5}))


def test_a_worker_fits_the_smallest_type_of_the_ladder() -> None:
    """Otherwise a pod would wait for ever for the rung that has the small type."""
    alone = planned([model()], stack(pool(instanceTypes=["g6.xlarge"])))
    assert planned([model()], stack(LADDER)).pools[0].node == alone.pools[0].node


def test_a_ladder_changes_nothing_about_the_ray_cluster() -> None:
    plain = planned([model()], stack(pool(instanceTypes=TYPES, minNodes=2)))
    ladder = planned([model()], stack({**LADDER, "minNodes": 2}))
    assert ladder.ray_cluster == plain.ray_cluster, "a new rung would build a second Ray cluster"


def test_a_rung_keeps_its_groups_when_the_order_changes_or_another_comes() -> None:
    """A name with a position would replace every node group behind it."""

    def rungs(*purchases: str) -> dict[str, Any]:
        (made,) = planned([model()], stack(pool(instanceTypes=TYPES, purchase=list(purchases)))).pools
        return {rung.group: rung for rung in made.rungs}

    before, after = rungs("on-demand", "spot"), rungs("spot", "on-demand")
    assert before == after
    assert rungs("spot")["l4_spot"] == after["l4_spot"]


def test_no_rung_insists_on_the_minimum_of_a_ladder() -> None:
    """A group's minimum would order there again as soon as EC2 has machines, beside nodes that another rung gave."""
    (one,) = planned([model()], stack(pool(instanceTypes=TYPES, minNodes=2))).pools
    ladder = planned([model()], stack({**LADDER, "minNodes": 2}))
    assert [rung.floor_nodes for rung in one.rungs] == [2]
    assert [rung.floor_nodes for rung in ladder.pools[0].rungs] == [0, 0, 0]
    assert ladder.ray_cluster.worker_groups[0].min_replicas == 2, "Ray's pods ask for them"


def test_the_labels_of_two_rungs_differ() -> None:
    """To the autoscaler, groups with the same labels are alike, and it spreads new nodes over them: over two rungs."""
    (made,) = planned([model()], stack(LADDER)).pools
    assert [rung.labels["modelfleet.dev/purchase"] for rung in made.rungs] == ["reservation", "spot", "on-demand"]
    for rung in made.rungs:
        assert rung.labels.items() > made.labels.items(), "a worker of the pool selects nodes of all its rungs"


def test_a_ladder_where_the_stack_makes_no_nodes_is_warned_of() -> None:
    def said(**pool_keys: Any) -> list[str]:
        made = planned([model()], stack(pool(instanceTypes=TYPES, **pool_keys), target="kubernetes"))
        return [one.message for one in made.notices if one.path.endswith("purchase")]

    (message,) = said(purchase=["spot", "on-demand"])
    assert message.startswith("found spot, on-demand, but target kubernetes makes no nodes")
    assert said(purchase="spot") == []


@pytest.mark.parametrize("purchase", list(SUFFIXES))
def test_the_longest_pool_name_leaves_room_for_rung_zone_and_suffix(purchase: Any) -> None:
    """A managed node group's name has at most 63 characters, and Terraform's suffix takes 26."""
    longest = Pool.model_validate({"name": "a" * 28, "accelerator": "L4", "maxNodes": 1}).name
    assert len(f"{group_name(longest, purchase)}-a-") + 26 <= 63
    with pytest.raises(ValidationError):
        Pool.model_validate({"name": "a" * 29, "accelerator": "L4", "maxNodes": 1})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"purchase": []}, "found an empty list; name at least one purchase or leave it out"),
        ({"purchase": ["spot", "spot"]}, "found spot twice; each is tried once"),
        (
            {"purchase": ["reservation", "spot"]},
            "capacityReservationId goes with purchase reservation or capacity-block",
        ),
        ({"purchase": "spot", **RESERVATION}, "capacityReservationId goes with purchase reservation or capacity-block"),
        ({"purchase": ["reservation", "capacity-block"], **RESERVATION}, "found both reservation and capacity-block"),
        ({"capacityReservationZone": "us-east-1b"}, "capacityReservationZone goes with capacityReservationId"),
        ({"purchase": ["spot", "free"]}, "Input should be"),
    ],
    ids=["empty", "twice", "no-id", "id-alone", "both", "zone-alone", "unknown"],
)
def test_a_ladder_that_cannot_be_made_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Pool.model_validate(pool(**keys))


@pytest.mark.parametrize(
    ("pools", "zones", "said"),
    [
        pytest.param(8, 3, None, id="28 of 30"),
        pytest.param(20, 3, "may make 64 managed node groups with the system pool's", id="20 pools in 3 zones"),
        pytest.param(20, 1, None, id="20 pools in one zone each"),
        pytest.param(33, 3, "no account gets more than 100", id="103"),
    ],
)
def test_more_node_groups_than_a_new_account_has_are_told_with_what_helps(
    pools: int, zones: int, said: str | None
) -> None:
    """A group per pool and zone, three of the system pool, one of the mirror. EKS would refuse the thirty-first halfway."""
    own = {} if zones == 3 else {"zones": ["us-east-1a"]}
    made = planned([model()], stack(*(pool(name=f"p{n}", **own) for n in range(pools)), network={"zones": 3}))
    found = [one for one in made.notices if "managed node groups" in one.message]
    assert [one.path for one in found] == ([] if said is None else ["modelfleet:pools"])
    assert said is None or said in found[0].message
    assert said is None or "give pools fewer `zones` or `purchase`s, or make two stacks" in found[0].message
