"""The plan as plain data for `--json`: the rows of the tables, and what the renderers get."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from modelfleet.infra.planning import Plan
from modelfleet.infra.stack import Target
from modelfleet.serving.config.errors import Finding


def plan_json(plan: Plan) -> dict[str, Any]:
    """The whole plan, including the Serve configuration; a plan contains no secrets."""
    names = [field.name for field in dataclasses.fields(plan) if field.name != "source"]
    fields = {name: plain(getattr(plan, name)) for name in names}
    return {**fields, "idle_usd_per_month": plan.idle_usd_per_month, "serve_config": plan.serve_config}


def plain(value: Any) -> Any:
    """Dataclasses, models and findings as values that JSON has."""
    if isinstance(value, Finding):
        return value.as_json()
    if isinstance(value, Target):
        return value.name
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
