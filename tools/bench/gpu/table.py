"""The record of `make gpu-bench` as one table. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from tools.bench.gpu.record import Record, Row

BASELINE = "vllm serve"
#: Most words of a row's first column.
WIDE = 52


def table(record: Record) -> str:
    """Everything that was measured so far, and what was not and why."""
    machine = record.rows[0]
    cards = f"{machine['card']} x {machine['count']}, driver {machine['driver']}"
    lines = [f"{cards}, vLLM {machine['vllm']}, {machine['model']}"]
    if machine["pretended"]:
        lines.append("PRETENDED: there is no card, vLLM's CPU build ran. No figure below is a card's.")
    lines += ["", "start, seconds to the first answer", *_starts(record)]
    lines += ["", "memory of one card: measured / planned", *_memory(record)]
    lines += ["", *_loads(record)]
    if left := _left_out(record):
        lines += ["", "not measured", *left]
    return "\n".join(lines)


def _starts(record: Record) -> list[str]:
    lines = []
    for row in _last_of_each(record.of("start"), "step"):
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["parts"].items())
        lines.append(f"  {row['step']:{WIDE}}{row['seconds']:8.1f}  {parts}".rstrip())
    return lines or ["  nothing yet"]


def _memory(record: Record) -> list[str]:
    lines = []
    for row in _last_of_each(record.of("memory"), "step"):
        planned = row["planned"]
        cells = [
            f"{label} {row[name]:,.{digits}f} / {planned[name]:,.{digits}f}"
            if name in planned
            else f"{label} {row[name]:,.{digits}f}"
            for name, label, digits in (
                ("weights_gib", "weights GiB", 2),
                ("kv_gib", "KV GiB", 2),
                ("kv_tokens", "KV tokens", 0),
            )
            if name in row
        ]
        if row["used_mib"]:
            cells.append(f"in use {max(row['used_mib']) / 1024:,.2f} GiB")
        lines.append(f"  {row['step']:{WIDE}}{'; '.join(cells) or 'its log says nothing'}")
    return lines or ["  nothing yet"]


def _loads(record: Record) -> list[str]:
    """A line for each target and load: medians, and the ratio to `vllm serve` on as many cards."""
    rows = record.of("load")
    if not rows:
        return ["loads", "  nothing yet"]
    base = {key: _median(group, "per_second") for key, group in _groups(rows).items() if key[0].startswith(BASELINE)}
    lines = [
        f"{'loads':{WIDE}}{'req/s':>10}{'of vllm serve':>16}{'first ms':>10}{'p99 ms':>9}{'CPU ms':>8}{'failed':>8}"
    ]
    for key, group in _groups(rows).items():
        step, target, concurrency, stream = key
        rates = [
            rate
            for (name, _, c, s), rate in base.items()
            if (c, s) == (concurrency, stream) and _cards(name) == _cards(step)
        ]
        rate = _median(group, "per_second")
        ratio = f"x{rate / statistics.mean(rates):.2f}" if rates and not step.startswith(BASELINE) else ""
        load = f"{'stream' if stream else 'plain'} c{concurrency}"
        lines.append(f"  {step}; {load}")
        failed = sum(row["failed"] for row in group)
        lines.append(
            f"    {target:{WIDE - 4}}{rate:10.1f}{ratio:>16}{_median(group, 'first_ms'):10.1f}"
            f"{_median(group, 'first_p99_ms'):9.1f}{_median(group, 'cpu_ms'):8.2f}{failed:8d}"
        )
    return lines


def _left_out(record: Record) -> list[str]:
    """The steps that did not come to an end, as far as the last word about each goes."""
    last = _last_of_each(record.of("step"), "step")
    return [f"  {row['step']:{WIDE}}{row['outcome']}: {row['why']}" for row in last if row["outcome"] != "done"]


def _cards(step: str) -> str:
    return next((part for part in step.split(", ") if part.endswith(" cards")), "")


def _groups(rows: Sequence[Row]) -> Mapping[tuple[str, str, int, bool], list[Row]]:
    found: dict[tuple[str, str, int, bool], list[Row]] = {}
    for row in rows:
        found.setdefault((row["step"], row["target"], row["concurrency"], row["stream"]), []).append(row)
    return dict(sorted(found.items(), key=lambda one: (one[0][3], one[0][2])))


def _median(group: Sequence[Row], name: str) -> float:
    return float(statistics.median(row[name] for row in group))


def _last_of_each(rows: Sequence[Row], name: str) -> list[Row]:
    return list({row[name]: row for row in rows}.values())
