"""Write the generated parts of `models/README.md`: every key of a model file, and every old name.

    python -m tools.schema.reference [--check]

The text around them is written by hand; each part is between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tools.schema.common import ROOT, write_or_compare

README = ROOT / "models" / "README.md"
PART = re.compile(r"(<!-- generated: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

_TYPES = {
    "integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "array": "list",
    "object": "mapping", "null": "null",
}  # fmt: skip


def readme(text: str) -> str:
    """`text` with its generated parts made again."""
    parts = {"keys": keys, "removed": removed_arguments}
    return PART.sub(lambda match: f"{match[1]}\n{parts[match['name']]()}\n{match[3]}", text)


def keys() -> str:
    """A table per section: key, type and unit, default, what it does, example."""
    from modelfleet.serving.config.schema import ModelConfig

    schema = ModelConfig.model_json_schema(mode="validation")
    lines: list[str] = []
    for path, definition in _sections(schema, schema, ""):
        lines += [f"### {f'`{path}`' if path else 'Top level'}", "", definition.get("description", ""), ""]
        lines += ["| key | type, unit | default | what it does | example |", "|---|---|---|---|---|"]
        required = definition.get("required", [])
        lines += [_row(name, key, name in required, schema) for name, key in definition["properties"].items()]
        lines.append("")
    return "\n".join(lines)


def removed_arguments() -> str:
    """A table of the engine arguments that vLLM dropped, with what to write instead."""
    from modelfleet.serving.config.catalogs import removed

    lines = ["| argument | last seen in vLLM | gone in | today |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {entry.last} | {entry.gone} | {_cell(entry.instead)} |"
        for name, entry in sorted(removed("arguments").items())
    ]
    return "\n".join(lines) + "\n"


def _sections(node: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each section once, parents first, with its key path."""
    yield path, node
    for name, key in node["properties"].items():
        inner = _referred(key, schema)
        if inner is not None and "properties" in inner:
            suffix = "[]" if _is_list(key) else ""
            yield from _sections(inner, schema, f"{path}.{name}{suffix}".lstrip("."))


def _referred(key: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    for branch in [key, *key.get("anyOf", []), key.get("items", {})]:
        if "$ref" in branch:
            found: dict[str, Any] = schema["$defs"][branch["$ref"].rsplit("/", 1)[-1]]
            return found
    return None


def _is_list(key: dict[str, Any]) -> bool:
    return "items" in key


def _row(name: str, key: dict[str, Any], required: bool, schema: dict[str, Any]) -> str:
    default = "**required**" if required else _default(key)
    description = key.get("description") or (_referred(key, schema) or {})["description"]
    example = f"`{name}: {_yaml(key['examples'][0])}`"
    return f"| `{name}` | {_type(key)} | {default} | {_cell(description)} | {_cell(example)} |"


def _type(key: dict[str, Any]) -> str:
    branches = [branch for branch in key.get("anyOf", [key]) if branch.get("type") != "null"]
    unit = next((branch["unit"] for branch in branches if "unit" in branch), None)
    allowed = [value for branch in branches for value in branch.get("enum", ())]
    if "const" in key:
        return f"`{key['const']}`"
    if allowed:
        several = (
            ", or a list of them" if any(branch.get("items", {}).get("enum") == allowed for branch in branches) else ""
        )
        return ", ".join(f"`{value}`" for value in allowed) + several
    kinds = {"mapping" if "$ref" in branch else _TYPES[branch["type"]] for branch in branches}
    return " or ".join(sorted(kinds)) + (f", {unit}" if unit else "")


def _default(key: dict[str, Any]) -> str:
    """The default as YAML; an empty mapping or list, and null, are "none"."""
    value = key.get("default")
    return "none" if value in (None, [], {}) and value is not False else f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if not re.fullmatch(r"[\w./:-]+", value) else value
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def main() -> int:
    """Write or compare the file."""
    return write_or_compare(README, readme(README.read_text(encoding="utf-8")))


if __name__ == "__main__":
    raise SystemExit(main())
