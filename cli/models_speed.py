"""The speed of one replica as `models show` prints it: keys of the JSON, and one line for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from modelfleet.cli.plan_table import range_text
from modelfleet.infra.catalog import Accelerator, Catalog
from modelfleet.infra.catalog.speed import ENGINES, measurements
from modelfleet.infra.planning.fit import GIB, Setting
from modelfleet.infra.planning.memory.stored import AT_LOAD, SECTIONS
from modelfleet.infra.planning.node_prices import replica_price
from modelfleet.infra.planning.replica_speed import replica_speed, why_no_speed
from modelfleet.infra.planning.speed import Load, Range
from modelfleet.infra.planning.speed.inputs import ASSUMED_INPUT, ASSUMED_OUTPUT, VLLM
from modelfleet.infra.planning.speed.shape import in_precision
from modelfleet.infra.reading.named_model import NamedModel
from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.config.validation import near

#: What stands in the JSON in place of a speed that cannot be given.
SILENT = {
    "ttft_ms": None, "tpot_ms": None, "output_tokens_per_second": None, "saturated": None, "running_sequences": None,
    "basis": None, "usd_per_million_tokens": None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AskedLoad:
    """The options of `models show` about speed. Lengths are means in tokens."""

    input_tokens: int = ASSUMED_INPUT
    output_tokens: int = ASSUMED_OUTPUT
    concurrency: int = 1
    engine: str = VLLM

    def __post_init__(self) -> None:
        """Raises `SetupError` for an engine without factors."""
        if self.engine not in ENGINES:
            raise SetupError(f"--engine: found {self.engine!r}; {near(self.engine, ENGINES)}")

    @property
    def load(self) -> Load:
        """As the estimate takes it."""
        return Load(self.input_tokens, self.output_tokens, self.concurrency)


def quantized(model: NamedModel, name: str | None) -> NamedModel:
    """The model stored in that format. Raises `SetupError` for a name that nobody knows."""
    if name is None:
        return model
    known = {one.lower(): one for one in SECTIONS}
    if name.lower() not in known:
        raise SetupError(f"--quantization: found {name!r}; {near(name, list(SECTIONS))}")
    stored = in_precision(model.facts.checkpoint, known[name.lower()])
    if stored is model.facts.checkpoint:
        return model
    facts = dataclasses.replace(model.facts, checkpoint=stored, header_bytes=None, header_elements=None)
    source = f"config.json, counted as if its weights were {known[name.lower()]}"
    return dataclasses.replace(model, facts=facts, weights_source=source)


def quantization_notice(before: NamedModel, after: NamedModel, name: str | None) -> list[str]:
    """What a figure for weights that the checkpoint does not have rests on."""
    plain = before.facts.quantization is None
    if after is before or name is None or (plain and name.lower() in AT_LOAD):
        return []
    return [f"counted as if there were a checkpoint of it in {name.lower()}; vLLM makes none when it loads this one"]


def speed_row(
    model: NamedModel, setting: Setting | None, asked: AskedLoad, kv_gib: float | None, catalog: Catalog
) -> dict[str, Any]:
    """The keys of the JSON about speed."""
    load = asked.load
    lengths = {"input_tokens": load.input_tokens, "output_tokens": load.output_tokens, "concurrency": load.concurrency}
    shown: dict[str, Any] = {"load": {**lengths, "engine": asked.engine}, **SILENT}
    if setting is None:
        return shown
    room = None if kv_gib is None else kv_gib * GIB
    rows = measurements()
    price = replica_price(setting.accelerator.name, setting.workers, catalog)
    usd = None if price is None else price.usd_per_hour
    found = replica_speed(
        model.facts, setting, load, model=model.name, engine=asked.engine, room=room, rows=rows, usd_per_hour=usd
    )
    if found is None:
        return {**shown, "basis": f"none: {why_no_speed(model.facts, setting, load, room)}"}
    return shown | {key: _rounded(value) for key, value in dataclasses.asdict(found).items() if key in SILENT}


def _rounded(value: Any) -> Any:
    """A figure to a thousandth; a range too."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def speed_source(shown: Mapping[str, Any], accelerator: Accelerator | None) -> dict[str, str]:
    """Where the figures about speed come from."""
    if shown["output_tokens_per_second"] is None or accelerator is None:
        return {}
    return {
        "speed": f"{shown['basis']}: infra/catalog/speed-factors.csv, fitted to measurements.csv; docs/planning.md",
        "price": "infra/catalog/prices.csv, on demand in the reference region, the cheapest share of a node",
    }


def speed_line(shown: Mapping[str, Any]) -> str:
    """One line for people; empty without an accelerator."""
    if shown["basis"] is None:
        return ""
    load = shown["load"]
    if shown["output_tokens_per_second"] is None:
        return f"no estimate of speed: {str(shown['basis']).removeprefix('none: ')}"
    said = f"{shown['basis']}: {load['concurrency']:g} × ({load['input_tokens']:g} in, {load['output_tokens']:g} out)"
    if shown["saturated"]:
        parts = [f"above capacity, {shown['running_sequences']:,.0f} run at once"]
    else:
        parts = [
            f"first token {range_text(Range(**shown['ttft_ms']))} ms",
            f"then {range_text(Range(**shown['tpot_ms']))} ms each",
        ]
    parts.append(f"{range_text(Range(**shown['output_tokens_per_second']))} tokens/s")
    if shown["usd_per_million_tokens"] is not None:
        parts.append(f"{shown['usd_per_million_tokens']:,.2f} USD per million tokens")
    return f"{said}: {', '.join(parts)}"
