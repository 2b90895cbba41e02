"""IAM policy documents as AWS decides on them: statements, an action, a resource, and the request's context.

    decide(statements, "s3:GetObject", "arn:aws:s3:::bucket/key", {"aws:SecureTransport": "true"})

It raises `ValueError` on an element or an operator that it does not know, so a condition that it does not understand
can never pass as allowed. It looks at conditions only where action and resource match.
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any

Statement = Mapping[str, Any]
#: Condition keys of a request. A key with several values (`aws:TagKeys`) has a list.
Context = Mapping[str, str | Sequence[str]]

_KNOWN = {"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition", "Principal"}
_VARIABLE = re.compile(r"\$\{([^}]+)\}")


class Decision(Enum):
    """What statements together say."""

    ALLOWED = "allowed"
    NOT_ALLOWED = "no statement allows it"
    DENIED = "an explicit deny"


def decide(statements: Iterable[Statement], action: str, resource: str, context: Context | None = None) -> Decision:
    """An explicit Deny wins, and nothing is allowed by default."""
    keys = {name.lower(): value for name, value in (context or {}).items()}  # condition keys know no case
    effects = {statement["Effect"] for statement in statements if _applies(statement, action, resource, keys)}
    if "Deny" in effects:
        return Decision.DENIED
    return Decision.ALLOWED if "Allow" in effects else Decision.NOT_ALLOWED


def allowed(statements: Iterable[Statement], action: str, resource: str, context: Context | None = None) -> bool:
    """Whether the statements together allow the action."""
    return decide(statements, action, resource, context) is Decision.ALLOWED


def as_list(value: Any) -> list[Any]:
    """An element that may be one value or a list of values."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _applies(statement: Statement, action: str, resource: str, keys: Context) -> bool:
    if unknown := set(statement) - _KNOWN:
        raise ValueError(f"the evaluator does not know {unknown}")
    return (
        _matches(statement, "Action", lambda pattern: like(pattern.lower(), action.lower()))
        and _matches(statement, "Resource", lambda pattern: like(_filled(pattern, keys), resource))
        and all(_holds(operator, wanted, keys) for operator, wanted in statement.get("Condition", {}).items())
    )


def _matches(statement: Statement, element: str, matches: Callable[[str], bool]) -> bool:
    """Whether `Action` or `Resource` has the value, or `NotAction` or `NotResource` has not."""
    if f"Not{element}" in statement:
        return not any(matches(pattern) for pattern in as_list(statement[f"Not{element}"]))
    if element not in statement and element == "Resource":  # a trust policy: its resource is the role
        return True
    return any(matches(pattern) for pattern in as_list(statement[element]))


def _filled(pattern: str, keys: Context) -> str:
    """Policy variables replaced; one that the request does not have matches nothing."""

    def value(match: re.Match[str]) -> str:
        found = keys.get(match[1].lower())
        return found if isinstance(found, str) else "\0"

    return _VARIABLE.sub(value, pattern)


def like(pattern: str, value: str) -> bool:
    """Whether the value matches a pattern with `*` and `?`."""
    return _expression(pattern).fullmatch(value) is not None


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    parts = (".*" if sign == "*" else "." if sign == "?" else re.escape(sign) for sign in pattern)
    return re.compile("".join(parts), re.DOTALL)


_COMPARE: Mapping[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda want, have: want == have,
    "StringEqualsIgnoreCase": lambda want, have: want.lower() == have.lower(),
    "StringLike": like,
    "ArnEquals": like,
    "ArnLike": like,
    "Bool": lambda want, have: want.lower() == have.lower(),
}
#: Negations. They hold if the request does not have the key.
_NEGATED = {
    "StringNotEquals": "StringEquals",
    "StringNotLike": "StringLike",
    "ArnNotEquals": "ArnEquals",
    "ArnNotLike": "ArnLike",
}


def _holds(operator: str, wanted: Mapping[str, Any], keys: Context) -> bool:
    set_operator, _, name = operator.rpartition(":")
    if name == "Null":
        return all((key.lower() not in keys) == (str(want).lower() == "true") for key, want in wanted.items())
    if_exists = name.endswith("IfExists")
    name = name.removesuffix("IfExists")
    if (name not in _COMPARE and name not in _NEGATED) or set_operator not in ("", "ForAllValues", "ForAnyValue"):
        raise ValueError(f"the evaluator does not know {operator}")
    return all(
        if_exists if key.lower() not in keys and if_exists else _key_holds(name, set_operator, want, key, keys)
        for key, want in wanted.items()
    )


def _key_holds(name: str, set_operator: str, wanted: Any, key: str, keys: Context) -> bool:
    compare = _COMPARE[_NEGATED.get(name, name)]
    have = keys.get(key.lower())
    values = [] if have is None else as_list(have)

    def one(value: str) -> bool:
        found = any(compare(_filled(str(want), keys), value) for want in as_list(wanted))
        return found != (name in _NEGATED)

    if set_operator == "ForAllValues":  # true without values, as AWS warns
        return all(one(value) for value in values)
    if not values:
        return name in _NEGATED and not set_operator
    return any(one(value) for value in values)
