"""Shared by the generators: types as JSON knows them, and writing a file the same way every time."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "serving" / "config" / "data"

_KINDS: dict[Any, str] = {
    bool: "bool", int: "int", float: "float", str: "str", dict: "object", list: "list", tuple: "list", set: "list",
    type(None): "null",
}  # fmt: skip


def described(hint: Any) -> dict[str, Any]:
    """A type hint as `kinds` (`int`, `float`, `bool`, `str`, `object`, `list`, `null`), `choices`, an object's `keys`.

    Hints that YAML cannot express (classes, callables) are left out.
    """
    kinds: set[str] = set()
    choices: list[Any] = []
    keys: set[str] = set()
    for branch in _branches(hint):
        origin = typing.get_origin(branch) or branch
        if origin is typing.Literal:
            choices += typing.get_args(branch)
        elif isinstance(origin, type) and issubclass(origin, enum.Enum):
            choices += _enum_choices(origin)
        elif dataclasses.is_dataclass(origin):
            kinds.add("object")
            keys |= {field.name for field in dataclasses.fields(origin)}
        elif hasattr(origin, "model_fields"):
            kinds.add("object")
            keys |= set(origin.model_fields)
        elif isinstance(origin, type) and issubclass(origin, dict):
            kinds.add("object")
        elif kind := _KINDS.get(origin):
            kinds.add(kind)
    result: dict[str, Any] = {"kinds": sorted(kinds)}
    if choices:
        result["choices"] = sorted(set(choices), key=str)
    if keys:
        result["keys"] = sorted(keys)
    return result


def plain(value: Any) -> Any:
    """A default value as JSON; None if it has no JSON form (a factory, a class)."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return None


def bounds(metadata: typing.Iterable[Any]) -> dict[str, Any]:
    """`ge`, `gt`, `le` and `lt` from annotated-types metadata."""
    found: dict[str, Any] = {}
    for item in metadata:
        for name in ("ge", "gt", "le", "lt"):
            if isinstance(limit := getattr(item, name, None), int | float):
                found[name] = limit
    return found


def as_text(data: Any) -> str:
    """The data file's text: stable order, one line per leaf entry, newline at the end."""
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_or_compare(path: Path, text: str) -> int:
    """Write `path`, or with `--check` compare it with what the installed packages give; return the exit code."""
    shown = path.relative_to(ROOT)
    if "--check" not in sys.argv[1:]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {shown}", file=sys.stderr)
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        print(f"{shown} is up to date", file=sys.stderr)
        return 0
    print(f"{shown} differs from what the installed packages give; run `make schema`", file=sys.stderr)
    return 1


def _branches(hint: Any) -> typing.Iterator[Any]:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        yield from _branches(typing.get_args(hint)[0])
    elif origin in (typing.Union, types.UnionType):
        for inner in typing.get_args(hint):
            yield from _branches(inner)
    else:
        yield hint


def _enum_choices(kind: type[enum.Enum]) -> list[Any]:
    """vLLM reads an enum argument by its member's name, or by its value if that is plain."""
    values = [member.value for member in kind if isinstance(member.value, int)]
    return values or list(kind.__members__)
