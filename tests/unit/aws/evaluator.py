"""A small evaluator of IAM policy documents: identity policies of one role, as AWS decides on them.

It knows what our documents use: Effect, Action, Resource with `*` and `?`, StringEquals, StringLike, ArnEquals, Bool.
It raises on anything else, so a condition that it does not understand can never pass as allowed.
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_KNOWN = {"Sid", "Effect", "Action", "Resource", "Condition", "Principal"}


def allowed(
    statements: Iterable[Mapping[str, Any]], action: str, resource: str, context: Mapping[str, str] | None = None
) -> bool:
    """Whether the statements together allow the action: an explicit Deny wins, and nothing is allowed by default."""
    effects = {s["Effect"] for s in statements if _applies(s, action, resource, context or {})}
    return "Deny" not in effects and "Allow" in effects


def _applies(statement: Mapping[str, Any], action: str, resource: str, context: Mapping[str, str]) -> bool:
    if unknown := set(statement) - _KNOWN:
        raise ValueError(f"the evaluator does not know {unknown}")
    return (
        any(_like(pattern, action, ignore_case=True) for pattern in _list(statement["Action"]))
        and any(_like(pattern, resource) for pattern in _list(statement["Resource"]))
        and all(_holds(op, keys, context) for op, keys in statement.get("Condition", {}).items())
    )


def _holds(operator: str, keys: Mapping[str, Any], context: Mapping[str, str]) -> bool:
    if operator not in ("StringEquals", "StringLike", "ArnEquals", "Bool"):
        raise ValueError(f"the evaluator does not know {operator}")
    like = operator in ("StringLike", "ArnEquals")
    return all(
        key in context and any(_like(want, context[key]) if like else want == context[key] for want in _list(wanted))
        for key, wanted in keys.items()
    )


def _like(pattern: str, value: str, *, ignore_case: bool = False) -> bool:
    expression = "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch(expression, value, re.IGNORECASE if ignore_case else 0) is not None


def _list(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value
