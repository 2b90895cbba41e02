"""Values that a file leaves open: `modelfleet import` writes them where its source does not say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modelfleet.serving.config.document import Document, KeyPath
from modelfleet.serving.config.errors import Finding

#: Also what Hydra writes for a value that must still be given.
HOLE = "???"


def hole_findings(document: Document, data: Any) -> Iterator[Finding]:
    """An error for each value that is left open."""
    for path in _holes(data, ()):
        yield document.finding(
            path, f"is left open ({HOLE}); write a value: the comment on its line says what is known"
        )


def _holes(data: Any, path: KeyPath) -> Iterator[KeyPath]:
    if data == HOLE:
        yield path
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _holes(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _holes(value, (*path, index))
