"""Writes the table of rules into docs/doctor.md: `python -m tests.unit.doctor.rewrite`."""

from __future__ import annotations

from pathlib import Path

from modelfleet.doctor.evidence import Layer
from modelfleet.doctor.rules import Placed, default_rules

PAGE = Path(__file__).parents[3] / "docs" / "doctor.md"
MARK = "<!-- rules:"


def page(text: str) -> str:
    """The page with the rules as they are now; everything below its mark's line is written anew."""
    head, mark, rest = text.partition(MARK)
    return f"{head}{mark}{rest.partition(chr(10))[0]}\n{tables(default_rules())}"


def tables(rules: tuple[Placed, ...]) -> str:
    """A table a layer."""
    made = []
    for layer in Layer:
        rows = [placed.rule for placed in rules if placed.layer is layer]
        if not rows:
            continue
        made.append(f"\n### {layer}\n\n| rule | what it says | the way out |\n|---|---|---|")
        for rule in rows:
            kind = " (symptom)" if rule.symptom else ""
            cells = (f"`{rule.id}`{kind}", _cell(rule.sentence), _cell(rule.fix))
            made.append(f"| {' | '.join(cells)} |")
    return "\n".join(made) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
