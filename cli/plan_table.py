"""The plan as tables for a terminal: pools with their nodes, models with their replicas, what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from modelfleet.cli.output import counted
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.plan import (
    CopyPlan,
    CostRange,
    GpuMemory,
    ImagePlan,
    ModelPlan,
    PoolPlan,
    Rung,
    SealPlan,
    WeekPlan,
)
from modelfleet.infra.planning.schedule import table_words
from modelfleet.infra.planning.speed import Range, SpeedEstimate
from modelfleet.infra.planning.start_up import StartUp
from modelfleet.serving.scaling import Schedule

UNKNOWN = "?"
#: Columns that a narrow terminal is spared, the first one first.
SPARED = (
    "token", "ray", "graphs", "load", "import", "engine",
    "sequences", "KV cache", "limit", "per node", "purchase", "zones", "workers", "USD/h min", "pool", "USD/h node",
    "USD/10⁶", "first token ms", "at once", "gated", "active", "licence", "tokens", "kind",
    "10⁹", "USD/h, 8K",
)  # fmt: skip
#: What text keeps beside numbers before it is broken.
TEXT_WIDTH = 24


def plan_table(plan: Plan, *, head: bool = True) -> RenderableType:
    """The tables and the lines below them; above them, in the `head`, this machine's cards and what it lacks.

    `up` says both itself: the one first of all, the other last.
    """
    parts: list[RenderableType] = [*(_head(plan) if head else ()), _pools(plan), *_ladders(plan), _models(plan)]
    if any(model.memory for model in plan.models):
        parts.append(Text(basis_text(plan.models)))
    if plan.models:
        parts.append(_lengths(plan))
    if any(model.speed for model in plan.models):
        parts.append(_speeds(plan))
    parts += _schedules(plan)
    if any(model.slo for model in plan.models):
        parts.append(_goals(plan))
    if any(model.start for model in plan.models):
        parts.append(_starts(plan))
    if any(model.seal for model in plan.models):
        parts.append(_seals(plan))
    if plan.models:
        parts.append(_changes(plan))
    if plan.target.priced:
        parts.append(_total(plan))
        if plan.copies.models:
            parts.append(Text(copies_text(plan.copies)))
        if plan.images:
            parts.append(Text(image_text(plan.images)))
        parts.append(Text(f"Prices: {plan.prices}", style="dim"))
    return Group(*parts)


def _head(plan: Plan) -> list[Text]:
    cards = [Text(f"Cards: {plan.cards.named}")] if plan.cards else []
    return cards + [Text(f"Missing: {line}", style="red") for line in plan.stops_up]


@dataclass
class FittingTable:
    """A table with right-aligned numbers (`True` in `columns`) that leaves columns out where the terminal is narrow."""

    title: str
    columns: Sequence[tuple[str, bool]]
    rows: list[tuple[Sequence[str], str]] = field(default_factory=list)

    def add_row(self, *cells: str, style: str = "") -> None:
        """Add a row, with a cell for each column."""
        self.rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left_out: list[str] = []
        names = [name for name, _ in self.columns[1:]]
        spared = [name for name in SPARED if name in names]
        while _least_width(console, options, table := self._table(left_out)) > options.max_width and spared:
            left_out.append(spared.pop(0))
        yield table
        if left_out:
            yield Text(f"left out: {', '.join(left_out)}; a wider terminal and --json have them", style="dim")

    def _table(self, left_out: Sequence[str]) -> Table:
        table = Table(
            title=self.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
        )
        kept = [index for index, (name, _) in enumerate(self.columns) if name not in left_out]
        for index in kept:
            name, number = self.columns[index]
            longest = max(map(len, (name, *(cells[index] for cells, _ in self.rows))))
            width = longest if number else min(longest, TEXT_WIDTH)
            table.add_column(
                name, justify="right" if number else "left", no_wrap=number, overflow="fold", min_width=width
            )
        for cells, style in self.rows:
            if style:
                table.add_section()
            table.add_row(*[cells[index] for index in kept], style=style)
        return table


def _least_width(console: Console, options: ConsoleOptions, table: Table) -> int:
    """How wide a table is with its text broken as far as it may be."""
    return Measurement.get(console, options.update(max_width=10_000), table).minimum


def _pools(plan: Plan) -> FittingTable:
    bought = not plan.target.on_this_machine
    columns = [("pool", False), ("node", False), *([("purchase", False)] if bought else [])]
    columns += [("nodes", True), ("limit", True)]
    columns += [("USD/h node", True), ("USD/h min", True), ("USD/h max", True)] if plan.target.priced else []
    table = FittingTable(f"Pools of stack {plan.stack} ({_place(plan)})", columns)
    for pool in plan.pools:
        row = [pool.name, node_text(pool), *([pool.purchases] if bought else [])]
        row += [nodes_text(pool), str(pool.max_nodes)]
        if plan.target.priced:
            row += [usd(pool.usd_per_node_hour), *_range(pool.cost)]
        table.add_row(*row)
    return table


def _ladders(plan: Plan) -> list[FittingTable]:
    """Every rung of the pools that have several, in the order in which the autoscaler tries them."""
    pools = [pool for pool in plan.pools if len(pool.rungs) > 1]
    if not pools or not plan.target.makes_cluster:
        return []
    columns = [("pool", False), ("rung", True), ("card", False), ("purchase", False), ("types, in order", False)]
    columns += [("zones", False), ("fits", False), ("USD/h node", True), ("USD/h max", True)]
    table = FittingTable("Capacity ladders: the next rung is tried where EC2 has no machines", columns)
    for pool in pools:
        for number, rung in enumerate(pool.rungs, 1):
            row = [pool.name, str(number), rung.accelerator, rung.purchase]
            row += [", ".join(rung.instance_types), zones_text(rung), fits_text(plan, pool, rung)]
            table.add_row(*row, usd(rung.usd_per_node_hour), usd(most_usd(pool, rung)))
        if pool.returns:
            row = [pool.name, "+", "", "while a worker returns", "one node more", "", "", ""]
            table.add_row(*row, usd(pool.returns.usd_per_hour))
    return [table]


def zones_text(rung: Rung) -> str:
    """The rung's own zones, or `all`."""
    return ", ".join(rung.zones) if rung.zones else "all"


def fits_text(plan: Plan, pool: PoolPlan, rung: Rung) -> str:
    """How many replicas a node carries, by model: the smallest type of all rungs decides.

    On a pool with a fallback also how many sequences of full length the rung's card holds.
    """
    own = [model for model in plan.models if model.pool == pool.name]
    sizes = [_sequences_text(model, rung) if len(pool.accelerators) > 1 else "" for model in own]
    texts = [f"{per_node_text(model)} × {model.model_id}{size}" for model, size in zip(own, sizes, strict=True)]
    return ", ".join(texts) or "no model"


def _sequences_text(model: ModelPlan, rung: Rung) -> str:
    others = {one.accelerator: one.memory for one in model.fallbacks}
    memory = others.get(rung.accelerator, model.memory)
    return f" ({counted(memory.full_length_sequences, 'sequence')})" if memory else ""


def most_usd(pool: PoolPlan, rung: Rung) -> float | None:
    """USD per hour if this rung gave all nodes that the pool's models may take; None for an unknown price."""
    most = max(pool.min_nodes, min(pool.needed_nodes, pool.max_nodes))
    return None if rung.usd_per_node_hour is None else most * rung.usd_per_node_hour


def _models(plan: Plan) -> FittingTable:
    columns = [("model", False), ("pool", False), ("replicas", True), ("workers", True), ("per node", True)]
    known = any(model.memory for model in plan.models)
    columns += [("GPU memory", True), ("KV cache", True), ("sequences", True)] if known else []
    columns += [("USD/h min", True), ("USD/h max", True)] if plan.target.priced else []
    table = FittingTable("Models", columns)
    for model in plan.models:
        row = [model.model_id, model.pool, replicas_text(model), str(model.workers), per_node_text(model)]
        row += memory_texts(model.memory) if known else []
        row += _range(model.cost) if plan.target.priced else []
        table.add_row(*row)
        for one in model.fallbacks if known else ():
            row = [f"  on {one.accelerator}", *[""] * 4, *memory_texts(one.memory)]
            table.add_row(*row, *[""] * (2 * plan.target.priced))
    return table


def _lengths(plan: Plan) -> FittingTable:
    """How long a request may be and how it is sampled, and whose words that is."""
    table = FittingTable("Length and sampling", [("model", False), ("length", True), ("sampling", False)])
    for model in plan.models:
        table.add_row(model.model_id, length_text(model), model.sampling)
    return table


def _speeds(plan: Plan) -> FittingTable:
    columns = [("model", False), ("at once", True), ("first token ms", True), ("token ms", True), ("tokens/s", True)]
    columns += [("USD/10⁶", True)] if plan.target.priced else []
    columns += [("basis", False)]
    loads = sorted({f"{one.input_tokens} tokens in, {one.output_tokens} out" for m in plan.models if (one := m.speed)})
    table = FittingTable(f"Speed of one replica at its target_ongoing_requests, {' or '.join(loads)}", columns)
    for model in plan.models:
        others = [(f"  on {one.accelerator}", one.speed) for one in model.fallbacks]
        for name, speed in [(model.model_id, model.speed), *others]:
            if speed is not None:
                table.add_row(*_speed_row(name, speed, priced=plan.target.priced))
    return table


def _goals(plan: Plan) -> FittingTable:
    """What model files promise clients, beside what the plan expects on average."""
    columns = [("model", False), ("goal", False), ("expected mean ms", True)]
    table = FittingTable("Goals, which the stack's alerts watch", columns)
    for model in plan.models:
        for goal in model.slo:
            speeds = {"ttft": model.speed.ttft_ms, "tpot": model.speed.tpot_ms} if model.speed else {}
            expected = speeds.get(goal.name)
            table.add_row(model.model_id, goal.sentence, range_text(expected) if expected else "-")
    return table


def _starts(plan: Plan) -> FittingTable:
    names = list(dict.fromkeys(part.name for m in plan.models if m.start for part in m.start.parts))
    columns = [("model", False), *((name, True) for name in names), ("together", True), ("again", True)]
    table = FittingTable(
        "Estimated seconds from nothing to the first token; again: a replica on the same node", columns
    )
    for model in plan.models:
        if (start := model.start) is None:
            continue
        seconds = {part.name: _seconds(part.seconds) for part in start.parts}
        row = [seconds.get(name, "-") for name in names]
        table.add_row(model.model_id, *row, _seconds(start.seconds), _seconds(start.again_seconds))
    return table


def _seconds(value: float) -> str:
    return f"{value:,.0f}"


def start_text(start: StartUp) -> str:
    """`295 s: node 120, image 67, ray 10, weights 15 beside import 8, …`; the two beside each other count once."""
    words = ", ".join(f"{part.name} {_seconds(part.seconds)}" for part in start.parts)
    return f"{_seconds(start.seconds)} s: {words}".replace(", import", " beside import")


def _schedules(plan: Plan) -> list[RenderableType]:
    """From when on each model has which bounds, and what a week costs then."""
    timed = [model for model in plan.models if model.schedule is not None]
    if not timed:
        return []
    table = FittingTable("Schedules: the entry that began last counts", [("model", False), ("replicas", False)])
    for model in timed:
        table.add_row(model.model_id, schedule_text(model.schedule))
    return [table, *([Text(f"{week_text(plan.week)}; --html draws its hours")] if plan.week else [])]


def schedule_text(schedule: Schedule | None) -> str:
    """`mon-fri 08:00: 2–8; mon-sun 20:00: 0–1 (Europe/Berlin), at most mon-fri 20:00: 0–own (UTC)`; empty without."""
    if schedule is None:
        return ""
    own = table_words(schedule.own) if schedule.own else span(schedule.fewest, schedule.most)
    return f"{own}, at most {table_words(schedule.stack)}" if schedule.stack else own


def week_text(week: WeekPlan) -> str:
    """`A week: 12.00–90.00 USD with the schedules, 48.00–120.00 without`."""
    scheduled, always = (
        f"{usd(cost.min_usd_per_hour)}–{usd(cost.max_usd_per_hour)}" for cost in (week.scheduled, week.always)
    )
    return f"A week: {scheduled} USD with the schedules, {always} without"


def _seals(plan: Plan) -> FittingTable:
    """The sealed compile caches, each with the Job that makes it, or why there is none."""
    table = FittingTable("Sealed compile caches, each made once by a Job", [("model", False), ("seal", False)])
    for model in plan.models:
        if model.seal is not None:
            table.add_row(model.model_id, seal_text(model.seal, priced=plan.target.priced))
    return table


def seal_text(seal: SealPlan, *, priced: bool) -> str:
    """`0123456789abcdef, about 7 min on a node of its own, 0.23 USD on top`, or `none: it runs eagerly, …`."""
    if not seal.has_job:
        return f"none: {seal.because}"
    cost = f", {usd(seal.usd)} USD on top" if priced else ""
    return f"{seal.key}, about {seal.seconds / 60:.0f} min on a node of its own{cost}"


def _changes(plan: Plan) -> FittingTable:
    """The gap of each model, in the order of a release."""
    by_slug = {model.slug: model for model in plan.models}
    table = FittingTable(f"Changes: {release_text(plan)}", [("model", False), ("an edit, or new code, leaves", False)])
    for slug in plan.release.order:
        table.add_row(by_slug[slug].model_id, by_slug[slug].gap.sentence)
    return table


def release_text(plan: Plan) -> str:
    """How models take new serving code: `new serving code goes to one model at a time, in this order`."""
    at_once = plan.release.at_once
    return f"new serving code goes to {'one model' if at_once == 1 else f'{at_once} models'} at a time, in this order"


def _speed_row(name: str, speed: SpeedEstimate, *, priced: bool) -> list[str]:
    times = ["above capacity", "-"]
    if speed.ttft_ms is not None and speed.tpot_ms is not None:
        times = [range_text(speed.ttft_ms), range_text(speed.tpot_ms)]
    row = [name, f"{speed.concurrency:g}", *times, range_text(speed.output_tokens_per_second)]
    return [*row, *([usd(speed.usd_per_million_tokens)] if priced else []), speed.basis]


def range_text(one: Range) -> str:
    """`41 (30–65)`; one number where a measurement has no range."""
    bounds = "" if one.low == one.high else f" ({_figure(one.low)}–{_figure(one.high)})"
    return _figure(one.expected) + bounds


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _total(plan: Plan) -> FittingTable:
    table = FittingTable("Cost", [("", False), ("USD/h min", True), ("USD/h max", True)])
    for part in plan.fixed:
        table.add_row(f"{part.count} × {part.name}" if part.count > 1 else part.name, *[usd(part.usd_per_hour)] * 2)
    for pool in plan.pools:
        table.add_row(f"pool {pool.name}", *_range(pool.cost))
    table.add_row("total", *_range(plan.cost), style="bold")
    idle = plan.idle_usd_per_month
    if idle is not None:
        table.add_row("per month at the minimum", f"{idle:,.0f}", "")
    return table


def copies_text(copies: CopyPlan) -> str:
    """What the stack copies once: `Copying weights: 141 GB, about 22 min on m7i.2xlarge, 0.15 USD on top`."""
    where = f" on {', '.join(copies.pool.instance_types)}, {usd(copies.usd)} USD on top" if copies.pool else ""
    if copies.bytes is None or copies.seconds is None:
        return f"Copying weights: a size that is not known{where}"
    return f"Copying weights: {copies.bytes / 1e9:,.0f} GB, about {copies.seconds / 60:.0f} min{where}"


def image_text(images: Sequence[ImagePlan]) -> str:
    """What the first run does once, and what its result costs then.

    `Building 2 images, once: about 25 min in CodeBuild, 0.52 USD on top; ECR keeps them for 1.23 USD a month`.
    """
    what, them = ("the image", "it") if len(images) == 1 else (f"{len(images)} images", "them")
    # At the same time, each on a machine of its own.
    minutes = max(image.minutes for image in images)
    once, month = _sum(image.usd for image in images), _sum(image.usd_per_month for image in images)
    return (
        f"Building {what}, once: about {minutes} min in CodeBuild, {usd(once)} USD on top; ECR keeps {them} for "
        f"{usd(month)} USD a month"
    )


def _sum(prices: Iterable[float | None]) -> float | None:
    known = list(prices)
    return None if None in known else sum(price for price in known if price is not None)


def _place(plan: Plan) -> str:
    return f"{plan.target}, {plan.region}" if plan.region else plan.target.name


def _range(cost: CostRange) -> list[str]:
    return [usd(cost.min_usd_per_hour), usd(cost.max_usd_per_hour)]


def usd(amount: float | None) -> str:
    """`1.32`; a question mark for an unknown price."""
    return UNKNOWN if amount is None else f"{amount:,.2f}"


def node_text(pool: PoolPlan) -> str:
    """The pool's instance types, or what one node offers."""
    node = pool.node
    gpus = f"{node.gpus} × {pool.card_here or pool.accelerator}, " if node.gpus else ""
    memory = f", {node.memory_mib / 1024:.0f} GiB" if node.memory_mib else ""
    size = f"{gpus}{node.cpu_millis / 1000:g} CPU{memory}"
    return f"{', '.join(pool.instance_types)} ({size})" if pool.instance_types else size


def nodes_text(pool: PoolPlan) -> str:
    """`1–4`: from the minimum to what max_replicas of all models take."""
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


def length_text(model: ModelPlan) -> str:
    """`40,960 (checkpoint)`: the model's length, and why it is this one."""
    tokens = UNKNOWN if model.length is None else f"{model.length:,}"
    return f"{tokens} ({model.length_source})"


def memory_texts(memory: GpuMemory | None) -> list[str]:
    """Weights of the GPU's memory, KV cache, full-length sequences."""
    if memory is None:
        return ["-", "-", "-"]
    weights = f"{memory.weights_mib / 1024:.1f} of {memory.total_mib / 1024:.1f} GiB"
    return [weights, f"{memory.kv_cache_mib / 1024:.1f} GiB", str(memory.full_length_sequences)]


def basis_text(models: Iterable[ModelPlan]) -> str:
    """`GPU memory: org/a measured on H100, 2026-11-27; the others are an estimate`."""
    known = [model for model in models if model.memory]
    named = [f"{one.model_id} measured on {one.memory.measured}" for one in known if one.memory and one.memory.measured]
    if not named:
        return "GPU memory: an estimate; `modelfleet gpu check` holds it against a real card"
    rest = "; the others are an estimate" if len(named) < len(known) else ""
    return f"GPU memory: {', '.join(named)}{rest}"


def summary(plan: Plan) -> str:
    """`2 models on 1 pool, at most 5.29 USD/h.`"""
    text = f"{counted(len(plan.models), 'model')} on {counted(len(plan.pools), 'pool')}"
    if plan.target.on_this_machine:
        return f"{text}, on this machine."
    most = plan.cost.max_usd_per_hour
    return f"{text}, at most {most:,.2f} USD/h." if most is not None else f"{text}, at an unknown price."
