"""What passes on `vllm serve` and not on modelfleet. Pure."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Entry = Mapping[str, str]
COLUMNS = ("vllm serve", "modelfleet", "differ", "hidden", "skipped", "failed on both")


@dataclass(frozen=True)
class Difference:
    """A test with another outcome than on `vllm serve`, and why modelfleet hides what it asks for, if it does."""

    test: str
    why: str
    hidden: str = ""


@dataclass(frozen=True)
class Comparison:
    """Counts by module, what only `vllm serve` passes, and what only modelfleet does."""

    modules: Mapping[str, Counter[str]]
    lost: Sequence[Difference]
    gained: Sequence[Difference]

    @property
    def missing(self) -> list[Difference]:
        """What is lost and not hidden on purpose."""
        return [one for one in self.lost if not one.hidden]

    def table(self) -> str:
        """The counts as text, the sum last."""
        total = sum(self.modules.values(), Counter())
        lines = [" ".join(["module".ljust(74), *(name.rjust(14) for name in COLUMNS)])]
        for module, count in [*sorted(self.modules.items()), ("all", total)]:
            lines.append(" ".join([module.ljust(74), *(str(count[name]).rjust(14) for name in COLUMNS)]))
        return "\n".join(lines)


def read(text: str) -> dict[str, list[Entry]]:
    """The results of one server by test; a run that went on after a stop has several of one."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for line in text.splitlines():
        entry = json.loads(line)
        found[entry["test"].removeprefix("tests/")].append(entry)
    return found


def compared(
    plain: Mapping[str, Sequence[Entry]], ours: Mapping[str, Sequence[Entry]], hidden: Mapping[str, str]
) -> Comparison:
    """The difference of two runs. `hidden` has the begins of tests' names whose paths are shut on purpose."""
    modules: dict[str, Counter[str]] = defaultdict(Counter)
    lost, gained = [], []
    for test in sorted(plain.keys() | ours.keys()):
        before, now = _outcome(plain.get(test, ())), _outcome(ours.get(test, ()))
        count = modules[test.partition("::")[0]]
        count["vllm serve"] += before == "passed"
        count["modelfleet"] += now == "passed"
        count["skipped"] += before == now == "skipped"
        count["failed on both"] += before == now == "failed"
        if "passed" not in (before, now) or before == now:
            continue
        if now == "passed":
            gained.append(Difference(test, _why(plain.get(test, ()))))
            continue
        reason = next((why for begin, why in hidden.items() if test.startswith(begin)), "")
        count["hidden" if reason else "differ"] += 1
        lost.append(Difference(test, _why(ours.get(test, ())), reason))
    return Comparison(modules, lost, gained)


def _outcome(entries: Sequence[Entry]) -> str:
    seen = {entry["outcome"] for entry in entries}
    return next((one for one in ("passed", "failed", "skipped") if one in seen), "absent")


def _why(entries: Sequence[Entry]) -> str:
    said = next((entry["why"] for entry in entries if entry["outcome"] != "passed"), "it did not run")
    return " ".join(said.split())[:300]
