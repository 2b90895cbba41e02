"""Writes the tables of proofs and of rules into docs/doctor.md: `python -m tests.unit.doctor.rewrite`."""

from __future__ import annotations

from pathlib import Path

from modelfleet.doctor.evidence import Layer
from modelfleet.doctor.rules import Placed, default_rules
from tests.cluster import doctor_faults as on_kubernetes
from tests.doctor_faults import Fault
from tests.engine import doctor_faults as on_aws
from tests.engine import local_faults as on_this_machine

PAGE = Path(__file__).parents[3] / "docs" / "doctor.md"
MARK = "<!-- rules:"
#: Every fault that a test makes for real, with where.
PROOFS: tuple[tuple[str, Fault], ...] = (
    *(("`tests/cluster`", fault) for fault in on_kubernetes.FAULTS),
    *(("`tests/engine`", fault) for fault in (*on_this_machine.FAULTS, *on_aws.FAULTS)),
)


def page(text: str) -> str:
    """The page with the rules as they are now; everything below its mark's line is written anew."""
    head, mark, rest = text.partition(MARK)
    return f"{head}{mark}{rest.partition(chr(10))[0]}\n{proofs(default_rules())}{tables(default_rules())}"


def proofs(rules: tuple[Placed, ...]) -> str:
    """The rules that a real fault proves, each with its faults, in the order of the rules."""
    made = ["\n### Proved\n\n| rule | proved by | where |\n|---|---|---|"]
    for placed in rules:
        for folder, fault in PROOFS:
            if fault.rule == placed.rule.id:
                words = fault.words + (" (the kubelet's or autoscaler's words)" if fault.words_of == "written" else "")
                made.append(f"| `{fault.rule}` | {_cell(words)} | {folder} |")
    return "\n".join(made) + "\n"


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
