"""Reading loosely typed YAML: what is not of the expected kind counts as absent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modelfleet.serving.config.document import KeyPath


def mapping(data: Any, *path: str | int) -> dict[str, Any]:
    """The mapping at a path, or an empty one."""
    value = at(data, *path)
    return value if isinstance(value, dict) else {}


def items(data: Any, *path: str | int) -> list[Any]:
    """The list at a path, or an empty one."""
    value = at(data, *path)
    return value if isinstance(value, list) else []


def at(data: Any, *path: str | int) -> Any:
    """The value at a path, or None."""
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def text(data: Any, *path: str | int) -> str:
    """The text at a path; numbers as they are written, anything else as ""."""
    value = at(data, *path)
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def whole(data: Any, *path: str | int) -> int | None:
    """The whole number at a path, also from text such as `"2"`."""
    value = text(data, *path)
    return int(value) if value.isdigit() else None


def walk(data: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value with its path, parents first."""
    yield path, data
    if isinstance(data, dict):
        for key, value in data.items():
            yield from walk(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from walk(value, (*path, index))
