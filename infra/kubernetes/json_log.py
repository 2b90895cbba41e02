"""A pod's log as a person reads it, whichever form the stack writes (`observability.logs`). Pure."""

from __future__ import annotations

import json
from typing import Any


def as_text(log: str, *, heads: bool = True) -> str:
    """Objects of `scripts/json_lines.py` as lines `LEVEL time message`, or as the message alone; others as they are."""
    return "\n".join(_text(line, heads) for line in log.splitlines())


def _text(line: str, heads: bool) -> str:
    if not line.startswith("{"):
        return line
    try:
        found: Any = json.loads(line)
    except ValueError:
        return line
    if not isinstance(found, dict) or "message" not in found:
        return line
    head = f"{found.get('level', '')} {found.get('time', '')} " if heads else ""
    return f"{head}{found['message']}"
