"""What a request needs: IAM actions on resources, from `actions.csv`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("actions.csv")
_BRACES = re.compile(r"\{(\w+)\}")


class NoRow(LookupError):
    """The table does not say what an operation needs, so nobody may call it."""


@dataclass(frozen=True)
class Need:
    """One permission: an IAM action on an ARN, or on `*` where AWS defines no resource."""

    action: str
    resource: str


@dataclass(frozen=True)
class _Row:
    operation: str
    action: str
    resource: str
    when: str


def needs(service: str, operation: str, values: Mapping[str, Any]) -> list[Need]:
    """The permissions of a request; `values` are its parameters and its partition, region and account.

    Raises `NoRow` if the table has neither the operation nor a rule of the service.
    """
    rows = _rows().get(service, {})
    found = rows.get(operation) or rows.get("*")
    if found is None:
        raise NoRow(f"tools/cloud/{TABLE.name} has no row for {service} {operation}; add one with its source")
    values = {**values, "operation": operation}
    return [
        Need(row.action.format(operation=operation), resource)
        for row in found
        if row.action and (not row.when or values.get(row.when))
        for resource in _resources(row.resource, values)
    ]


def _resources(template: str, values: Mapping[str, Any]) -> list[str]:
    """The ARNs: one for each value of a parameter that has several. `*` if the request lacks one of its parameters."""
    names = _BRACES.findall(template)
    if any(values.get(name) in (None, "", []) for name in names):
        return ["*"]
    several = [values[name] if isinstance(values[name], list) else [values[name]] for name in names]
    return [template.format(**dict(zip(names, chosen, strict=True))) for chosen in product(*several)]


@cache
def _rows() -> dict[str, dict[str, list[_Row]]]:
    found: dict[str, dict[str, list[_Row]]] = {}
    with TABLE.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(_data(stream)):
            operations = found.setdefault(row["service"], {}).setdefault(row["operation"], [])
            operations.append(_Row(row["operation"], row["action"], row["resource"], row["when"]))
    return found


def _data(lines: Iterable[str]) -> Iterable[str]:
    return (line for line in lines if not line.startswith("#"))
