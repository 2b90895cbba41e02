"""The catalog's tables, written again."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_table(path: Path, rows: Sequence[Mapping[str, str]], source: str | None = None) -> None:
    """Rewrite the table; keeps its first line, with `source` in place of the old source if given."""
    header = path.read_text("utf-8").splitlines()[0]
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.write(f"{header if source is None else header.partition('Source: ')[0] + source}\n")
        writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
