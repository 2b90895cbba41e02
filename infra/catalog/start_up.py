"""How long the parts of a replica's start take: start-parts.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from modelfleet.serving.config.catalogs import csv_rows


@dataclass(frozen=True)
class PartFacts:
    """Seconds of one part: a fixed share, one per GiB, and one per decoder layer."""

    seconds: float
    per_gib: float
    per_layer: float

    def of(self, gib: float = 0.0, layers: int = 0) -> float:
        """Seconds for so much."""
        return self.seconds + self.per_gib * gib + self.per_layer * layers


@cache
def start_parts() -> Mapping[tuple[str, str], PartFacts]:
    """The rows by their first two columns: the part, and what it is of."""
    rows = csv_rows(Path(__file__).parent / "start-parts.csv")
    names = ("seconds", "seconds_per_gib", "seconds_per_layer")
    return {(row["part"], row["on"]): PartFacts(*(float(row[name]) for name in names)) for row in rows}
