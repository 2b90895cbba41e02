"""Which pool a model runs on.

Models are placed in the order of their ids. Each goes to the first pool of the stack file that has its accelerator,
whose nodes carry a replica, and whose maxNodes still holds everyone's min_replicas. Otherwise it tries the next pool.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.planning.candidates import Candidate, PoolChoice, candidates_of, cheapest
from modelfleet.infra.planning.demand import Demand
from modelfleet.infra.planning.pool_findings import choice_findings, missing_pool, too_large
from modelfleet.infra.stack import LoadedStack, Pool
from modelfleet.serving.config.errors import Finding


def settle(
    stack: LoadedStack, demands: Sequence[Demand], catalog: Catalog, gpus: int | None = None
) -> tuple[list[PoolChoice], list[Finding]]:
    """Every pool with its models and node, in the stack file's order, and findings for what cannot be placed.

    `gpus` are the cards of this machine, for the local target.
    """
    pools = stack.config.pools
    waiting = {name: [d for d in demands if d.model.config.accelerator == name] for name in _accelerators(demands)}
    seen: dict[str, list[Candidate]] = {}
    choices: list[PoolChoice] = []
    findings: list[Finding] = []
    for index, pool in enumerate(pools):
        candidates, wrong = candidates_of(index, stack, catalog, gpus)
        findings += wrong
        if not candidates:
            waiting.pop(pool.accelerator, None)
            continue
        seen.setdefault(pool.accelerator, []).extend(candidates)
        last = all(later.accelerator != pool.accelerator for later in pools[index + 1 :])
        choice, rest = _take(pool, candidates, waiting.get(pool.accelerator, []), last=last)
        waiting[pool.accelerator] = rest
        choices.append(choice)
        findings += choice_findings(index, stack, choice, candidates)
    with_pool = {pool.accelerator for pool in pools}
    for accelerator, left in waiting.items():
        for demand in left:
            known = accelerator in with_pool
            findings.append(too_large(demand, seen[accelerator], catalog) if known else missing_pool(stack, demand))
    return choices, findings


def _accelerators(demands: Sequence[Demand]) -> list[str]:
    return sorted({demand.model.config.accelerator for demand in demands})


def _take(
    pool: Pool, candidates: Sequence[Candidate], queue: Sequence[Demand], *, last: bool
) -> tuple[PoolChoice, list[Demand]]:
    """The pool with as many of the queue as it carries, and the rest of the queue."""
    fitting: list[Demand] = []
    rest: list[Demand] = []
    for demand in queue:
        (fitting if any(demand.fits(c.room) for c in candidates) else rest).append(demand)

    def choice_of(count: int) -> PoolChoice | None:
        found = cheapest(pool, candidates, fitting[:count])
        room_for_all = last or (found is not None and found.need_at_min <= pool.max_nodes)
        return found if room_for_all else None

    choice, low = choice_of(len(fitting)), len(fitting)
    if choice is None:
        low, high = 0, len(fitting) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if choice_of(middle) else (low, middle - 1)
        choice = cheapest(pool, candidates, fitting[:low])
    if choice is None:
        raise ValueError(f"pool {pool.name} has no candidates")
    return choice, [*fitting[low:], *rest]
