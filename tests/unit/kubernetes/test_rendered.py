"""Every manifest is a file, to be read in the diff. `python -m tests.unit.kubernetes.rewrite` writes them again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.kubernetes.projects import STACKS
from tests.unit.kubernetes.rewrite import RENDERED, texts


@pytest.mark.parametrize("stack", STACKS)
def test_manifests_are_as_they_were_reviewed(stack: str, tmp_path: Path) -> None:
    wanted = {path.name: path.read_text() for path in (RENDERED / stack).glob("*.yaml")}
    found = texts(STACKS[stack](tmp_path))
    assert found == wanted, "run: python -m tests.unit.kubernetes.rewrite, and read the diff"
