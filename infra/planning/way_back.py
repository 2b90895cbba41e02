"""What it takes that a pool's workers return to an earlier rung: a node more for minutes, and answers that end in time.

A worker that returns has its next node, bought for a placeholder, before it leaves the last one. So a pool has one node
above `maxNodes` while a worker moves, and nobody is asked before it does. Its replicas get as long for their open
requests as in any planned end of a node.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelfleet.infra.planning.gap import drain_s
from modelfleet.infra.planning.plan import ReturnPlan, Rung
from modelfleet.infra.stack import LoadedStack, Pool
from modelfleet.serving.config.errors import Finding, Severity


def return_plan(stack: LoadedStack, pool: Pool, rungs: Sequence[Rung]) -> ReturnPlan | None:
    """How workers of a pool with these rungs return; None where they stay, or where the stack makes no nodes."""
    drain = drain_s(stack.config.target)
    if pool.return_after_minutes is None or drain is None:
        return None
    return ReturnPlan(60 * pool.return_after_minutes, _usd(rungs), drain)


def _usd(rungs: Sequence[Rung]) -> float | None:
    """The second highest price: all other nodes may be of the dearest rung, and a move is between two of them.

    A Capacity Block is paid for already.
    """
    prices = [0.0 if rung.purchase == "capacity-block" else rung.usd_per_node_hour for rung in rungs]
    known = sorted(price for price in prices if price is not None)
    return None if len(known) < len(prices) else sum(known[-2:-1])


def return_findings(stack: LoadedStack) -> list[Finding]:
    """A notice for each pool whose moves may cut an answer: the gateway allows a longer one than a move does."""
    drain, longest = drain_s(stack.config.target), stack.config.gateway.timeout_s
    if not stack.config.target.makes_cluster or drain is None or longest <= drain:
        return []
    message = (
        f"a worker that returns gives its open answers {drain} s, and gateway.timeoutS allows {longest} s: a longer "
        f"one is cut; write gateway.timeoutS: {drain} where no answer may be"
    )
    return [
        stack.finding(("pools", index, "returnAfterMinutes"), message, Severity.NOTICE)
        for index, pool in enumerate(stack.config.pools)
        if pool.return_after_minutes is not None
    ]
