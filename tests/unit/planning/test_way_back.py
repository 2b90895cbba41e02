"""What a worker's return to an earlier rung takes: its node is in the price, and answers that it cuts are said."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from modelfleet.cli.plan_html import plan_page
from modelfleet.cli.plan_table import plan_table
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.plan import ReturnPlan
from modelfleet.serving.config.errors import InputErrors, Severity
from tests.unit.planning.builders import model, planned, pool, stack

#: 0.8048 USD/h for g6.xlarge, 1.006 for g5.xlarge.
A10G = {"accelerator": "A10G", "instanceTypes": ["g5.xlarge"]}
BLOCK = {"capacityReservationId": "cr-0123456789abcdef0", "capacityReservationZone": "us-east-1b"}


def returning(
    *purchase: str, replicas: tuple[int, int] = (1, 3), keys: dict[str, Any] | None = None, **more: Any
) -> Plan:
    own = pool(instanceTypes=["g6.xlarge"], purchase=list(purchase), returnAfterMinutes=10, **more)
    return planned([model(replicas=replicas)], stack(own, **(keys or {})))


@pytest.mark.parametrize(
    ("purchase", "more", "usd", "most"),
    [
        pytest.param(["spot", "on-demand"], {}, 0.8048, 4 * 0.8048, id="alike"),
        pytest.param(
            ["spot"], {"fallback": [A10G]}, 0.8048, 3 * 1.006 + 0.8048, id="the cheaper one beside the dearest"
        ),
        pytest.param(["spot", "on-demand"], {"fallback": [A10G]}, 0.8048, 3 * 1.006 + 0.8048, id="three rungs"),
        pytest.param(["capacity-block", "on-demand"], BLOCK, 0.0, 3 * 0.8048, id="what is paid for"),
    ],
)
def test_the_node_above_max_nodes_of_a_move_is_in_the_price(
    purchase: list[str], more: dict[str, Any], usd: float, most: float
) -> None:
    """A move buys it and asks nobody, so a budget that does not count it is broken by the first one."""
    made = returning(*purchase, **more)
    (own,) = made.pools
    assert own.returns == ReturnPlan(600, pytest.approx(usd), 480)
    assert own.cost.max_usd_per_hour == pytest.approx(most)
    assert own.cost.min_usd_per_hour == pytest.approx((own.usd_per_node_hour or 0) * 1), "at rest nothing moves"
    assert sum(one.cost.max_usd_per_hour or 0 for one in made.models) == pytest.approx(most), "the parts add up"


def test_a_budget_without_room_for_a_move_is_refused() -> None:
    """0.5532 USD/h for what is not a pool; three nodes alone would be within 3."""
    returning("spot", "on-demand", keys={"budget": {"maxUsdPerHour": 3.78}})
    with pytest.raises(InputErrors, match="at its maximum the stack costs 3.78 USD/h"):
        returning("spot", "on-demand", keys={"budget": {"maxUsdPerHour": 3}})


def test_a_pool_that_no_model_uses_moves_nothing() -> None:
    own = pool(instanceTypes=["g6.xlarge"], purchase=["spot", "on-demand"], returnAfterMinutes=10)
    assert planned([], stack(own)).pools[0].cost.max_usd_per_hour == 0


def test_an_unknown_price_of_a_move_is_unknown_and_not_free() -> None:
    (own,) = returning("spot", "on-demand", keys={"region": "eu-central-1"}).pools
    assert own.returns is not None and own.returns.usd_per_hour is None
    assert own.cost.max_usd_per_hour is None


def test_table_and_page_show_what_a_move_costs() -> None:
    made = returning("spot", fallback=[A10G])
    console = Console(file=io.StringIO(), width=200)
    console.print(plan_table(made))
    assert isinstance(console.file, io.StringIO)
    (row,) = [line for line in console.file.getvalue().splitlines() if "while a worker returns" in line]
    assert row.split()[-1] == "0.80"
    assert "there is a node more: 0.80 USD/h at most" in plan_page(made)


@pytest.mark.parametrize(("timeout_s", "said"), [(3600, True), (481, True), (480, False), (60, False)])
def test_an_answer_that_a_move_would_cut_is_said_before_it_happens(timeout_s: int, said: bool) -> None:
    """A replica that leaves its node gets 480 s for its open answers; the gateway's default lets them take an hour."""
    made = returning("spot", "on-demand", keys={"gateway": {"timeoutS": timeout_s}})
    found = [one for one in made.notices if one.path.endswith("returnAfterMinutes")]
    assert [one.severity for one in found] == [Severity.NOTICE] * said
    assert not said or "one is cut; write gateway.timeoutS: 480" in found[0].message
