"""The plan as one self-contained page, without network or script: GPU memory, nodes of each pool, cost per model."""

from __future__ import annotations

from dataclasses import dataclass

from modelfleet.cli.page import page_environment
from modelfleet.cli.plan_table import (
    copies_text,
    fits_text,
    image_text,
    length_text,
    memory_texts,
    node_text,
    nodes_text,
    per_node_text,
    range_text,
    replicas_text,
    schedule_text,
    seal_text,
    start_text,
    summary,
    usd,
    week_text,
    zones_text,
)
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.plan import CostRange, GpuMemory, PoolPlan, WeekPlan
from modelfleet.serving.config.cron import clock

#: The page draws at most this many nodes of a pool; above that it gives their number.
MAX_DRAWN_NODES = 32


@dataclass(frozen=True)
class Segment:
    """A part of a bar: `share` in percent."""

    kind: str
    label: str
    gib: float
    share: float


def plan_page(plan: Plan) -> str:
    """The page as HTML text."""
    environment = page_environment()
    environment.filters["usd"] = usd
    functions = (
        segments, nodes_text, replicas_text, per_node_text, node_text, range_text, drawn_nodes, cost_share, copies_text,
        image_text, zones_text, start_text, fits_text, memory_texts, length_text, seal_text, week_bars,
        schedule_text, week_text,
    )  # fmt: skip
    return environment.get_template("plan.html.j2").render(
        plan=plan,
        summary=summary(plan),
        priced=plan.target.priced,
        max_drawn=MAX_DRAWN_NODES,
        **{function.__name__: function for function in functions},
    )


@dataclass(frozen=True)
class Bar:
    """One hour of the week's picture, in its units: `low` and `high` are heights above zero."""

    x: int
    low: float
    high: float
    label: str


#: Units of the week's picture: an hour's width, and the height of the dearest hour.
HOUR_WIDTH, WEEK_HEIGHT = 6, 100


def week_bars(week: WeekPlan) -> list[Bar]:
    """A bar for each hour: the cost at the fewest replicas, and at the most. None is drawn where a price is unknown."""
    dearest = max((hour.max_usd_per_hour or 0.0 for hour in week.hours), default=0.0)
    if not dearest:
        return []
    return [
        Bar(
            HOUR_WIDTH * index,
            WEEK_HEIGHT * (hour.min_usd_per_hour or 0.0) / dearest,
            WEEK_HEIGHT * (hour.max_usd_per_hour or 0.0) / dearest,
            f"{clock(60 * index)}: {usd(hour.min_usd_per_hour)}–{usd(hour.max_usd_per_hour)} USD/h",
        )
        for index, hour in enumerate(week.hours)
    ]


def segments(memory: GpuMemory) -> list[Segment]:
    """One GPU's memory from left to right: weights, KV cache, reserve, and what vLLM leaves free."""
    parts = [
        ("weights", "weights", memory.weights_mib),
        ("cache", "KV cache", memory.kv_cache_mib),
        ("reserve", "reserve", memory.reserve_mib),
        ("free", "free", memory.free_mib),
    ]
    return [Segment(kind, label, mib / 1024, 100 * mib / memory.total_mib) for kind, label, mib in parts]


def drawn_nodes(pool: PoolPlan) -> list[str]:
    """One word per drawn node: always on, on demand, or only the limit."""
    most = min(max(pool.needed_nodes, pool.min_nodes), pool.max_nodes)
    kinds = ["always"] * pool.min_nodes + ["demand"] * (most - pool.min_nodes) + ["limit"] * (pool.max_nodes - most)
    return kinds[:MAX_DRAWN_NODES]


def cost_share(cost: CostRange, plan: Plan) -> float:
    """A cost's share of the total maximum in percent; 0 where it is unknown."""
    whole, part = plan.cost.max_usd_per_hour, cost.max_usd_per_hour
    return 100 * part / whole if whole and part else 0.0
