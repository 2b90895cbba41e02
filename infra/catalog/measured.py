"""What vLLM really took on real cards: the rows of measured.csv, and of a fleet's own file of the same form."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from modelfleet.serving.config.catalogs import csv_rows

FILE = Path(__file__).resolve().parent / "measured.csv"


@dataclass(frozen=True)
class Measured:
    """One start of vLLM on a card. The columns of measured.csv, whose first line says what each is.

    GiB of one of `gpus` cards, tokens, milliseconds; None where it was not measured. `date` is ISO 8601.
    """

    accelerator: str
    card: str
    driver: str
    gpus: int
    model: str
    variant: str
    length: int
    batched_tokens: int
    sequences: int
    utilization: float
    usable_gib: float
    weights_gib: float
    non_torch_gib: float | None
    peak_gib: float | None
    kv_gib: float
    kv_tokens: int
    graphs_gib: float | None
    prefill_1024_ms: float | None
    token_ms_1: float | None
    token_ms_8: float | None
    token_ms_32: float | None
    vllm: str
    date: str
    source: str

    @property
    def reserve_gib(self) -> float:
        """What vLLM's share of the card lost beside weights and KV cache: non-torch memory and the profiling peak."""
        return self.usable_gib * self.utilization - self.weights_gib - self.kv_gib

    @property
    def where_and_when(self) -> str:
        """`H100, 2026-11-27`."""
        return f"{self.accelerator}, {self.date}"


NUMBERS = {
    "gpus": int, "length": int, "batched_tokens": int, "sequences": int, "kv_tokens": int,
}  # fmt: skip
WORDS = {"accelerator", "card", "driver", "model", "variant", "vllm", "date", "source"}
OPTIONAL = {"non_torch_gib", "peak_gib", "graphs_gib", "prefill_1024_ms", "token_ms_1", "token_ms_8", "token_ms_32"}
COLUMNS = tuple(one.name for one in fields(Measured))


def measured_rows(path: Path = FILE) -> Iterator[Measured]:
    """The rows of a file of measured.csv's form; raises `ValueError` with file and column for one that is not."""
    for number, row in enumerate(csv_rows(path), 1):
        try:
            yield _row(row)
        except (KeyError, TypeError, ValueError) as fault:
            raise ValueError(f"{path}: row {number} is not of measured.csv's form: {fault}") from None


def _row(row: Mapping[str, str]) -> Measured:
    found: dict[str, object] = {}
    for name in COLUMNS:
        text = row[name]
        if name in WORDS:
            found[name] = text
        elif name in OPTIONAL and not text:
            found[name] = None
        else:
            found[name] = NUMBERS.get(name, float)(text)
    return Measured(**found)  # type: ignore[arg-type]  # each column by its own type, above


def as_csv(rows: Sequence[Measured], *, header: bool) -> str:
    """The rows as lines of measured.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if value is None else value for name, value in asdict(row).items()})
    return text.getvalue()
