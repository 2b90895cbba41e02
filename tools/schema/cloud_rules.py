"""Write `docs/cloud-rules.md`: every rule of the emulated cloud with its source, and which of them our code broke.

python -m tools.schema.cloud_rules [--check]
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.schema.common import ROOT, write_or_compare

PAGE = ROOT / "docs" / "cloud-rules.md"
CLOUD = ROOT / "tools" / "cloud"
UNIT = "tests/unit/cloud/test_rules.py"
INTRODUCTION = """\
# Rules of the emulated AWS

`tools/cloud` is an AWS for tests that refuses what AWS refuses (`tools/README.md`). Each rule has a source, and a test
that breaks it. The last column says what modelfleet itself did against the rule before the rule was there; the finding
of the review that saw it is in brackets.
What the emulated AWS does not know is in `docs/aws.md`, "What cannot be known without an account".

Generated from `tools/cloud/rules.csv` and `tools/cloud/behaviours.csv` by `make schema`.
"""


def rows(name: str) -> list[dict[str, str]]:
    """A table of `tools/cloud`, without its comments."""
    with (CLOUD / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(line for line in stream if not line.startswith("#")))


def page() -> str:
    """The whole page."""
    refusals, behaviours = rows("rules.csv"), rows("behaviours.csv")
    broke = sum(bool(row["broke"]) for row in (*refusals, *behaviours))
    lines = [
        INTRODUCTION,
        f"{len(refusals) + len(behaviours)} rules, {broke} of which our code broke.",
        "",
        "## What is refused",
        "",
        *_table(("call", "answer", "source", "what our code did"), map(_refusal, refusals)),
        "",
        "## Who may, what belongs to what, which nodes join",
        "",
        *_table(("rule", "source and test", "what our code did"), map(_behaviour, behaviours)),
    ]
    return "\n".join(lines) + "\n"


def _refusal(row: Mapping[str, str]) -> tuple[str, ...]:
    words = "" if row["said"] == "aws" else " (our words)"
    answer = f"{row['status']} {row['code']}: {row['message']}{words}"
    return row["operations"].replace(" ", ", "), answer, f"{row['source']}; `{UNIT}::{row['test']}`", row["broke"]


def _behaviour(row: Mapping[str, str]) -> tuple[str, ...]:
    return row["what"], f"{row['source']}; `{row['test']}`", row["broke"]


def _table(head: tuple[str, ...], body: Iterator[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *body)]


def tests() -> Iterator[tuple[str, Path, str]]:
    """Each rule with the file and the name of its test."""
    for row in rows("rules.csv"):
        yield row["rule"], ROOT / UNIT, row["test"]
    for row in rows("behaviours.csv"):
        file, _, name = row["test"].partition("::")
        yield row["rule"], ROOT / file, name


def main() -> int:
    """Write or compare the page."""
    return write_or_compare(PAGE, page())


if __name__ == "__main__":
    raise SystemExit(main())
