"""Facts about speed: what each GPU can do at most, the factors that the fit found, and published measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Final

from modelfleet.serving.config.catalogs import csv_rows

FOLDER = Path(__file__).parent
#: In speed-factors.csv and speed-ranges.csv: where no row is more exact.
EVERYWHERE: Final = "*"


#: Engines whose measurements have factors of their own; `vllm-v0` is vLLM before 0.8.
ENGINES: Final = ("vllm", "sglang", "tensorrt-llm", "vllm-v0", "other")


@dataclass(frozen=True)
class SpeedCard:
    """Peaks of one GPU: bytes/s of its memory and of its link to the node's other GPUs, dense FLOP/s by operand."""

    name: str
    memory_bytes_per_s: float
    flops_16bit: float
    flops_fp8: float
    flops_int8: float
    flops_fp4: float
    link: str
    """`nvlink` or `pcie`."""
    link_bytes_per_s: float
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class Factors:
    """How far real servers stay below the peaks. Shares are of a peak, the rest has its unit in its name.

    Made by `python -m tools.speed fit`; `infra/planning/speed` says where each is used.
    """

    bandwidth: float
    kv_bandwidth: float
    packed_bandwidth: float
    expert_bandwidth: float
    prefill_flops: float
    decode_flops: float
    low_precision_flops: float
    expert_flops: float
    expert_half_tokens: float
    expert_half_mib: float
    layer_us: float
    expert_layer_us: float
    step_ms: float
    sequence_us: float
    prefill_layer_us: float
    expert_prefill_layer_us: float
    mixing: float
    request_ms: float
    all_reduce_us: float
    link: float
    queue: float
    burst: float
    tail: float
    sharegpt_tail: float


FACTORS: Final = tuple(one.name for one in fields(Factors))


@dataclass(frozen=True)
class FactorTable:
    """Factors by (name, scope); a scope is an accelerator, an engine, a link or `*`."""

    values: Mapping[tuple[str, str], float]

    def of(self, card: SpeedCard, engine: str) -> Factors:
        """The factors of one card and engine: the most exact row of each, or else that of `*`."""
        return Factors(**{name: self._value(name, card, engine) for name in FACTORS})

    def measured(self, card: SpeedCard) -> bool:
        """Whether measurements on this card decided some of its factors."""
        return any(scope == card.name for _, scope in self.values)

    def _value(self, name: str, card: SpeedCard, engine: str) -> float:
        for scope in (card.name, engine, card.link):
            if (found := self.values.get((name, scope))) is not None:
                return found
        return self.values[name, EVERYWHERE]


@dataclass(frozen=True)
class SpeedRange:
    """Between which shares of the predicted value nine of ten measurements lay, each with its source left out."""

    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """One published speed. None where the source does not say; the columns are explained in measurements.csv."""

    id: str
    model: str
    precision: str
    engine: str
    engine_version: str
    accelerator: str
    gpus: int
    input_tokens: float
    output_tokens: float
    load: str
    requests: float | None
    prompts: float | None
    lengths: str
    ttft_ms: float | None
    tpot_ms: float | None
    output_tokens_per_s: float | None
    kv_dtype: str
    utilization: float | None
    kv_gib: float | None
    max_num_seqs: int | None
    date: str
    source: str


@cache
def speed_cards() -> Mapping[str, SpeedCard]:
    """Every GPU of speed-accelerators.csv by its name."""
    return {row["accelerator"]: _card(row) for row in csv_rows(FOLDER / "speed-accelerators.csv")}


@cache
def fitted_factors() -> FactorTable:
    """The factors of speed-factors.csv."""
    rows = csv_rows(FOLDER / "speed-factors.csv")
    return FactorTable({(row["factor"], row["scope"]): float(row["value"]) for row in rows})


@cache
def speed_ranges() -> Mapping[tuple[str, str, str, str], SpeedRange]:
    """The ranges of speed-ranges.csv, by its first four columns: card, metric, load and model."""
    rows = csv_rows(FOLDER / "speed-ranges.csv")
    return {
        (r["card"], r["metric"], r["load"], r["model"]): SpeedRange(float(r["low"]), float(r["high"])) for r in rows
    }


@cache
def measurements() -> tuple[Measurement, ...]:
    """The rows of measurements.csv."""
    return tuple(_measurement(row) for row in csv_rows(FOLDER / "measurements.csv"))


def _card(row: Mapping[str, str]) -> SpeedCard:
    return SpeedCard(
        name=row["accelerator"],
        memory_bytes_per_s=float(row["memory_gb_per_s"]) * 1e9,
        flops_16bit=float(row["tflops_16bit"]) * 1e12,
        flops_fp8=float(row["tflops_fp8"]) * 1e12,
        flops_int8=float(row["tflops_int8"]) * 1e12,
        flops_fp4=float(row["tflops_fp4"]) * 1e12,
        link=row["link"],
        link_bytes_per_s=float(row["link_gb_per_s"]) * 1e9,
        memory_bytes=float(row["memory_gb"]) * 1e9,
    )


def _measurement(row: Mapping[str, str]) -> Measurement:
    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    return Measurement(
        id=row["id"],
        model=row["model"],
        precision=row["precision"],
        engine=row["engine"],
        engine_version=row["engine_version"],
        accelerator=row["accelerator"],
        gpus=int(row["gpus"]),
        input_tokens=float(row["input_tokens"]),
        output_tokens=float(row["output_tokens"]),
        load=row["load"],
        requests=number("requests"),
        prompts=number("prompts"),
        lengths=row["lengths"],
        ttft_ms=number("ttft_ms"),
        tpot_ms=number("tpot_ms"),
        output_tokens_per_s=number("output_tokens_per_s"),
        kv_dtype=row["kv_dtype"],
        utilization=number("utilization"),
        kv_gib=number("kv_gib"),
        max_num_seqs=int(row["max_num_seqs"]) if row["max_num_seqs"] else None,
        date=row["date"],
        source=row["source"],
    )
