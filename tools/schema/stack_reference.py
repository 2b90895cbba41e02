"""Write the generated part of `stacks/README.md`: every key of a stack file.

python -m tools.schema.stack_reference [--check]
"""

from __future__ import annotations

from typing import Any

from tools.schema.common import ROOT, write_or_compare
from tools.schema.reference import PART, _cell, _default, _referred, _sections, _type

README = ROOT / "stacks" / "README.md"
PREFIX = "modelfleet:"


def readme(text: str) -> str:
    """`text` with its generated part made again."""
    return PART.sub(lambda match: f"{match[1]}\n{keys()}\n{match[3]}", text)


def keys() -> str:
    """A table per section: key, type, default, what it does."""
    from modelfleet.infra.stack.schema import StackConfig

    schema = StackConfig.model_json_schema(mode="validation", by_alias=True)
    lines: list[str] = []
    for path, definition in _sections(schema, schema, ""):
        lines += [f"### {f'`{PREFIX}{path}`' if path else 'Top level'}", "", definition.get("description", ""), ""]
        lines += ["| key | type | default | what it does |", "|---|---|---|---|"]
        required = definition.get("required", [])
        for name, key in definition["properties"].items():
            shown = name if path else f"{PREFIX}{name}"
            lines.append(_row(shown, key, name in required, schema))
        lines.append("")
    return "\n".join(lines)


def _row(name: str, key: dict[str, Any], required: bool, schema: dict[str, Any]) -> str:
    default = "**required**" if required else "none" if "$ref" in key else _default(key)
    description = key.get("description") or (_referred(key, schema) or {})["description"]
    return f"| `{name}` | {_type(key)} | {default} | {_cell(description)} |"


def main() -> int:
    """Write or compare the file."""
    return write_or_compare(README, readme(README.read_text("utf-8")))


if __name__ == "__main__":
    raise SystemExit(main())
