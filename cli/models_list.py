"""`modelfleet models`: the catalog as a table, with the cheapest GPUs that hold each model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelfleet.cli import output
from modelfleet.cli.plan_table import FittingTable, usd
from modelfleet.infra.catalog import REFERENCE_REGION, Catalog, CatalogModel
from modelfleet.infra.planning.facts import facts_from_config
from modelfleet.infra.planning.smallest import LENGTHS, Smallest, choices, smallest
from modelfleet.infra.reading.measured import known_catalog

#: More models than these take so long to count that a terminal says so.
QUICK = 40


def run_models(search: str, *, as_json: bool = False) -> int:
    """Print the catalog's models whose id, kind or architecture has all words of `search`; returns the exit code."""
    catalog = known_catalog(Path.cwd())
    words = search.lower().split()
    found = [row for row in catalog.models.values() if all(word in _searched(row) for word in words)]
    if not found and not as_json:
        output.say(f'No model matches "{search}" in the catalog ({len(catalog.models)} models).')
        return 0
    if len(found) > QUICK:
        with output.status(f"counting the memory of {len(found)} models"):
            held = _smallest(found, catalog)
    else:
        held = _smallest(found, catalog)
    if as_json:
        output.show_json([_row_json(row, held[row.hf_id]) for row in found])
        return 0
    output.show(_table(found, held))
    output.say(f"{output.counted(len(found), 'model')}. Next: modelfleet models show MODEL, or modelfleet add MODEL")
    return 0


def _searched(row: CatalogModel) -> str:
    return f"{row.hf_id} {row.kind} {row.architecture} {row.licence}".lower()


def _smallest(rows: Sequence[CatalogModel], catalog: Catalog) -> Mapping[str, Sequence[Smallest]]:
    """By Hub id; empty where nobody knows the shape. Many checkpoints share one."""
    among, by_shape = choices(catalog), dict[str, Sequence[Smallest]]()
    found: dict[str, Sequence[Smallest]] = {}
    for row in rows:
        if row.config is None:
            found[row.hf_id] = ()
            continue
        shape = json.dumps(row.config, sort_keys=True)
        if shape not in by_shape:
            facts = facts_from_config(row.config, f"catalog: {row.shape_source}", catalog)
            by_shape[shape] = smallest(facts, catalog, among)
        found[row.hf_id] = by_shape[shape]
    return found


def _row_json(row: CatalogModel, held: Sequence[Smallest]) -> dict[str, Any]:
    kept = {key: value for key, value in dataclasses.asdict(row).items() if key != "config"}
    each = [dataclasses.asdict(one) | {"price_region": REFERENCE_REGION} for one in held]
    return {**kept, "shape_known": row.config is not None, "smallest": each}


def _table(rows: Sequence[CatalogModel], held: Mapping[str, Sequence[Smallest]]) -> FittingTable:
    columns = [("model", False), ("kind", False), ("10⁹", True), ("active", True), ("tokens", True)]
    for length in LENGTHS:
        columns += [(f"at {length // 1024}K", True), (f"USD/h, {length // 1024}K", True)]
    columns += [("licence", False), ("gated", False)]
    title = f"The cheapest GPUs that hold a model at two lengths, as whole nodes on demand in {REFERENCE_REGION}"
    table = FittingTable(title, columns)
    for row in rows:
        gated = {True: "yes", False: "no", None: "?"}[row.gated]
        numbers = [f"{n:g}" if n is not None else "" for n in (row.total_b, row.active_b)]
        tokens = f"{row.max_context:,}" if row.max_context else ""
        pairs = zip(LENGTHS, held[row.hf_id], strict=False)
        gpus = [text for length, one in pairs for text in _gpus(one, length)] or ["?"] * (2 * len(LENGTHS))
        table.add_row(row.hf_id, row.kind, *numbers, tokens, *gpus, row.licence[:32], gated)
    return table


def _gpus(one: Smallest, length: int) -> tuple[str, str]:
    """`2 × L40S` and its price, with the model's own length where that is less; beyond one node nothing."""
    shorter = f" to {one.length:,}" if one.length < length else ""
    if not one.accelerator:
        return f"no node{shorter}", "-"
    name = one.accelerator if one.gpus == 1 else f"{one.gpus} × {one.accelerator}"
    return f"{name}{shorter}", usd(one.usd_per_hour)
