"""Which settings of a model file make a replica run code from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from modelfleet.serving.config.catalogs import csv_rows

#: What no row of the table is about: off, empty, left out.
_OFF = (None, False, "", "0", "false", 0)


@dataclass(frozen=True)
class ForeignCode:
    """One setting: the section that it is in, its key below that, which values count, and what they run."""

    section: str
    key: tuple[str, ...]
    values: str
    runs: str

    def found_in(self, value: Any) -> bool:
        """Whether the setting's `value` runs foreign code."""
        if isinstance(value, list | dict):
            return bool(value)
        if value in _OFF:
            return False
        words = self.values.removeprefix("!").split("|")
        return self.values == "*" or (str(value).lower() in words) is not self.values.startswith("!")


@cache
def foreign_code() -> tuple[ForeignCode, ...]:
    """The rows of `foreign-code.csv`."""
    return tuple(
        ForeignCode(row["section"], tuple(row["key"].split(".")), row["values"], row["runs"])
        for row in csv_rows(Path(__file__).parent / "foreign-code.csv")
    )
