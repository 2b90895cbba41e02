"""`modelfleet top`: a live page of what a stack does now. In a pipe, with `--once` or `--json` one page.

Rates and percentiles are over the last `--window` seconds: replicas publish their counters every few seconds, so a
shorter window shows steps.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from modelfleet.cli import output
from modelfleet.cli.metrics_pages import looking
from modelfleet.infra.observability.samples import Look
from modelfleet.infra.observability.top import Latency, Now, page
from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.serving.config.errors import SetupError

#: Seconds between two looks of the live page.
EVERY_S: Final = 2.0
UNKNOWN: Final = "–"
OPTIONAL: Final = ("cards GiB", "USD/h a node", "USD/h")
EXPLAINED: Final = (
    "first ms, each ms: median/95th percentile of the time to the first token and of each further one; "
    "hits: prompt tokens found in the cache"
)


def run_top(stack: str, *, once: bool = False, as_json: bool = False, window: int = 20) -> int:
    """Show the page; returns the exit code. Raises `SetupError` where no metrics page answers."""
    root = Path.cwd()
    plan = make_plan(root, stack, deploying=False)
    with looking(plan, root) as look:
        first = _answered(look(), plan)
        if once or as_json or not sys.stdout.isatty():
            with output.status(f"looking at {stack} for {window} s"):
                time.sleep(window)
            _print(page(plan, first, _answered(look(), plan)), as_json=as_json)
        else:
            _watch(plan, first, look, window)
    return 0


def _answered(look: Look, plan: Plan) -> Look:
    if look.pages:
        return look
    raise SetupError(
        f"no metrics page of stack {plan.stack} answers{': ' if look.unread else ''}{'; '.join(look.unread)}; "
        f"is it up? `modelfleet doctor --stack {plan.stack}` says"
    )


def _print(now: Now, *, as_json: bool) -> None:
    output.show_json(now.as_json()) if as_json else output.show(drawn(now))


def _watch(plan: Plan, first: Look, look: Callable[[], Look], window: int) -> None:
    """Until the user presses Ctrl-C."""
    looks = deque([first])
    console = output.terminal()
    with Live(drawn(page(plan, first, first)), console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(EVERY_S)
                looks.append(look())
                while len(looks) > 2 and looks[-1].at - looks[1].at >= window:
                    looks.popleft()
                live.update(drawn(page(plan, looks[0], looks[-1])), refresh=True)
        except KeyboardInterrupt:
            return


def drawn(now: Now) -> RenderableType:
    """The page for a terminal."""
    cost = f", {now.usd_per_hour:,.2f} USD/h for nodes" if now.usd_per_hour is not None else ""
    head = Text(f"Stack {now.stack}: the last {now.seconds:.0f} s{cost}", style="bold")
    tables = [table(now) for table, rows in ((_models, now.models), (_pools, now.pools), (_keys, now.keys)) if rows]
    shown: list[RenderableType] = [head, *tables]
    shown.append(Text(EXPLAINED, style="dim"))
    shown += [Text(f"not read: {one}", style="yellow") for one in now.unread]
    return Group(*shown)


def _models(now: Now) -> Table:
    rows = [
        {
            "model": one.model,
            "replicas": f"{one.replicas}/{one.max_replicas}",
            "run": _number(one.running),
            "wait": _number(one.waiting),
            "tokens/s": f"{one.written_per_s:,.1f}",
            "read/s": f"{one.read_per_s:,.1f}",
            "first ms": _latency(one.first_token),
            "each ms": _latency(one.per_token),
            "KV": _share(one.kv_use),
            "hits": _share(one.prefix_hits),
            "cards GiB": _of(one.gpu_gib, one.gpu_total_gib),
            "USD/h": _usd(one.usd_per_hour),
        }
        for one in now.models
    ]
    return _table(rows)


def _pools(now: Now) -> Table:
    rows = [
        {
            "pool": one.pool,
            "accelerator": one.accelerator,
            "nodes": f"{one.nodes}/{one.max_nodes}",
            "cards GiB": _of(one.gpu_gib, one.gpu_total_gib),
            "USD/h a node": _usd(one.usd_per_node_hour),
            "USD/h": _usd(one.usd_per_hour),
        }
        for one in now.pools
    ]
    return _table(rows)


def _keys(now: Now) -> Table:
    rows = [
        {
            "key": one.key,
            "open": str(one.open),
            "requests/s": f"{one.asked_per_s:,.1f}",
            "tokens/s": f"{one.written_per_s:,.1f}",
            "read/s": f"{one.read_per_s:,.1f}",
        }
        for one in now.keys
    ]
    return _table(rows)


def _table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Without the columns of cards and prices where nobody has any."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    left_out = {name for name in OPTIONAL if all(row.get(name, UNKNOWN) == UNKNOWN for row in rows)}
    shown = [name for name in rows[0] if name not in left_out]
    for place, name in enumerate(shown):
        table.add_column(name, justify="right" if place else "left", overflow="fold", no_wrap=place > 0)
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    return table


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0%}"


def _usd(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.2f}"


def _of(part: float | None, whole: float | None) -> str:
    return UNKNOWN if part is None or whole is None else f"{part:,.0f}/{whole:,.0f}"


def _latency(found: Latency) -> str:
    """`120/480`: the median and the 95th percentile, in milliseconds."""
    if found.p50_s is None or found.p95_s is None:
        return UNKNOWN
    return f"{found.p50_s * 1e3:,.0f}/{found.p95_s * 1e3:,.0f}"
