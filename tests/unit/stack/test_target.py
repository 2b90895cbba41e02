"""A target's properties are in one place; nothing else checks its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from modelfleet.infra.stack.target import TARGETS, TargetName

ROOT = Path(__file__).resolve().parents[3]
COMPARED = re.compile(rf"""(==|!=|\bin\b|\bcase\b)\s*[(\[{{]?\s*["']({"|".join(get_args(TargetName))})["']""")


def test_every_name_has_its_target() -> None:
    assert tuple(TARGETS) == get_args(TargetName)
    assert all(target.name == name == str(target) for name, target in TARGETS.items())


def test_no_code_compares_a_target_by_its_name() -> None:
    """Otherwise a fourth target would have to be added at each comparison."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in ("infra", "cli", "serving")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if COMPARED.search(line)
    ]
    assert not found, "use a property from infra/stack/target.py"
