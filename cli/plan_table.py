"""The plan as tables for a terminal: pools with their nodes, models with their replicas, what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.planning import Plan
from infra.planning.plan import CostRange, GpuMemory, ModelPlan, PoolPlan

UNKNOWN = "?"


def plan_table(plan: Plan) -> RenderableType:
    """Both tables and the lines below them."""
    parts: list[RenderableType] = [_pools(plan), _models(plan)]
    if plan.target != "local":
        parts.append(_total(plan))
        parts.append(Text(f"Prices: {plan.prices}", style="dim"))
    return Group(*parts)


def _table(title: str, columns: Sequence[tuple[str, bool]]) -> Table:
    """A table whose numbers stand under each other; `True` marks a column of numbers."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
    )
    for name, number in columns:
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def _pools(plan: Plan) -> Table:
    columns = [("pool", False), ("node", False), ("purchase", False), ("nodes", True), ("limit", True)]
    columns += [("USD/h node", True), ("USD/h min", True), ("USD/h max", True)] if plan.target != "local" else []
    table = _table(f"Pools of stack {plan.stack} ({_place(plan)})", columns)
    for pool in plan.pools:
        row = [pool.name, node_text(pool), pool.purchase, nodes_text(pool), str(pool.max_nodes)]
        if plan.target != "local":
            row += [usd(pool.usd_per_node_hour), *_range(pool.cost)]
        table.add_row(*row)
    return table


def _models(plan: Plan) -> Table:
    columns = [("model", False), ("pool", False), ("replicas", True), ("workers", True), ("per node", True)]
    known = any(model.memory for model in plan.models)
    columns += [("GPU memory", True), ("KV cache", True), ("sequences", True)] if known else []
    columns += [("USD/h min", True), ("USD/h max", True)] if plan.target != "local" else []
    table = _table("Models", columns)
    for model in plan.models:
        row = [model.model_id, model.pool, replicas_text(model), str(model.workers), per_node_text(model)]
        row += memory_texts(model.memory) if known else []
        row += _range(model.cost) if plan.target != "local" else []
        table.add_row(*row)
    return table


def _total(plan: Plan) -> Table:
    table = _table("Cost", [("", False), ("USD/h min", True), ("USD/h max", True)])
    for part in plan.fixed:
        table.add_row(f"{part.count} × {part.name}" if part.count > 1 else part.name, *[usd(part.usd_per_hour)] * 2)
    for pool in plan.pools:
        table.add_row(f"pool {pool.name}", *_range(pool.cost))
    table.add_section()
    table.add_row("in all", *_range(plan.cost), style="bold")
    idle = plan.idle_usd_per_month
    if idle is not None:
        table.add_row("a month at the minimum", f"{idle:,.0f}", "")
    return table


def _place(plan: Plan) -> str:
    return f"{plan.target}, {plan.region}" if plan.region else plan.target


def _range(cost: CostRange) -> list[str]:
    return [usd(cost.min_usd_per_hour), usd(cost.max_usd_per_hour)]


def usd(amount: float | None) -> str:
    """`1.32`; a question mark for what is not known."""
    return UNKNOWN if amount is None else f"{amount:,.2f}"


def node_text(pool: PoolPlan) -> str:
    """The pool's instance types, or what one node offers."""
    node = pool.node
    gpus = f"{node.gpus} × {pool.accelerator}, " if node.gpus else ""
    memory = f", {node.memory_mib / 1024:.0f} GiB" if node.memory_mib else ""
    size = f"{gpus}{node.cpu_millis / 1000:g} CPU{memory}"
    return f"{', '.join(pool.instance_types)} ({size})" if pool.instance_types else size


def nodes_text(pool: PoolPlan) -> str:
    """`1–4`: from the minimum to what all replicas at their most take."""
    return span(pool.min_nodes, min(max(pool.needed_nodes, pool.min_nodes), pool.max_nodes))


def replicas_text(model: ModelPlan) -> str:
    """`1–8`."""
    return span(model.replicas.min, model.replicas.max)


def per_node_text(model: ModelPlan) -> str:
    """Replicas that fit a node; `spread` when one takes several nodes."""
    return str(model.replicas_per_node) if model.replicas_per_node else "spread"


def span(low: int, high: int) -> str:
    """`2`, or `1–4`."""
    return str(low) if low == high else f"{low}–{high}"


def memory_texts(memory: GpuMemory | None) -> list[str]:
    """Weights of the GPU's memory, KV cache, full-length sequences."""
    if memory is None:
        return ["-", "-", "-"]
    weights = f"{memory.weights_mib / 1024:.1f} of {memory.total_mib / 1024:.1f} GiB"
    return [weights, f"{memory.kv_cache_mib / 1024:.1f} GiB", str(memory.full_length_sequences)]


def summary(plan: Plan) -> str:
    """`2 models on 1 pool, at most 5.29 USD/h.`"""
    text = f"{_count(len(plan.models), 'model')} on {_count(len(plan.pools), 'pool')}"
    if plan.target == "local":
        return f"{text}, on this machine."
    most = plan.cost.max_usd_per_hour
    return f"{text}, at most {most:,.2f} USD/h." if most is not None else f"{text}, at a price that is not known."


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
