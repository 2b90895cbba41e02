"""`LLMConfig(…)` in a Python program: its literals and constants. Nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from modelfleet.infra.interchange.ray_serve_llm import workload_of_config
from modelfleet.infra.interchange.workload import Workload, unknown


def read_python(tree: ast.Module, name: str) -> Iterator[Workload]:
    """A workload for each LLMConfig of a module."""
    constants: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            constants.setdefault(node.targets[0].id, _value(node.value, constants))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func).endswith("LLMConfig"):
            data = _keywords(node, constants)
            if isinstance(data.get("model_loading_config"), dict):
                yield workload_of_config(data, f"{name}:{node.lineno}")


def _keywords(call: ast.Call, constants: Mapping[str, Any]) -> dict[str, Any]:
    return {key.arg: _value(key.value, constants) for key in call.keywords if key.arg}


def _value(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    """A literal, `dict(…)`, a configuration class's call, or a name that has one of them; anything else is unknown."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {
            _value(key, constants): _value(value, constants) for key, value in pairs if isinstance(key, ast.Constant)
        }
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(one, constants) for one in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value if isinstance(node.operand.value, int | float) else unknown(ast.unparse(node))
    if (
        isinstance(node, ast.Call)
        and not node.args
        and (_name(node.func) == "dict" or _name(node.func).endswith("Config"))
    ):
        return _keywords(node, constants)
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    return unknown(" ".join(ast.unparse(node).split())[:60])


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
