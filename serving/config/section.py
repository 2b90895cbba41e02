"""The base of every section of a model file, and numbers with their units."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, field_validator, model_validator

_MANY = 1_000_000


def _unit(unit: str) -> dict[str, JsonValue]:
    """The unit of a number, for the reference in models/README.md and for editors."""
    return {"unit": unit}


Replicas = Annotated[int, Field(ge=0, le=_MANY, json_schema_extra=_unit("replicas"))]
SomeReplicas = Annotated[int, Field(ge=1, le=_MANY, json_schema_extra=_unit("replicas"))]
Requests = Annotated[int, Field(ge=1, le=_MANY, json_schema_extra=_unit("requests"))]
AverageRequests = Annotated[float, Field(gt=0, le=_MANY, json_schema_extra=_unit("requests"))]
QueuedRequests = Annotated[int, Field(ge=-1, le=_MANY, json_schema_extra=_unit("requests"))]
Seconds = Annotated[float, Field(ge=0, le=1e9, json_schema_extra=_unit("seconds"))]
SomeSeconds = Annotated[float, Field(gt=0, le=1e9, json_schema_extra=_unit("seconds"))]
Milliseconds = Annotated[float, Field(gt=0, le=1e9, json_schema_extra=_unit("milliseconds"))]
#: Above 1 - 1/14.4 an outage can burn a budget as fast as the fastest alert asks (infra/catalog/burn-rates.csv).
Availability = Annotated[float, Field(ge=0.94, lt=1, json_schema_extra=_unit("share"))]
Factor = Annotated[float, Field(gt=0, le=1e9, json_schema_extra=_unit("factor"))]
Percent = Annotated[int, Field(ge=0, le=100, json_schema_extra=_unit("percent"))]
BalanceFactor = Annotated[int, Field(ge=101, le=1000, json_schema_extra=_unit("percent"))]
Cpus = Annotated[float, Field(ge=0, le=_MANY, json_schema_extra=_unit("CPUs"))]
GPU_PARTS = (0.5, 0.25, 0.125)
"""Parts of a GPU that a worker may have."""
GpuPart = Annotated[float, Field(gt=0, lt=1, json_schema_extra={**_unit("GPUs"), "enum": list(GPU_PARTS)})]
Gpus = Annotated[float, Field(ge=0, le=_MANY, json_schema_extra=_unit("GPUs"))]
Memory = Annotated[int, Field(ge=1, le=2**60, json_schema_extra=_unit("bytes"))]
Tokens = Annotated[int, Field(ge=1, le=1_000_000_000, json_schema_extra=_unit("tokens"))]
Workers = Annotated[int, Field(ge=1, le=1024, json_schema_extra=_unit("workers"))]
Share = Annotated[float, Field(gt=0, le=_MANY)]
Part = Annotated[float, Field(gt=0, lt=1, json_schema_extra=_unit("share"))]


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values never change after loading, null counts as left out."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def explain(cls, key: str) -> str | None:
        """A better message than "unknown" for a key that this section does not have; None when there is none."""
        return None

    @model_validator(mode="before")
    @classmethod
    def null_is_left_out(cls, data: Any) -> Any:
        """A key without a value counts as left out."""
        if not isinstance(data, dict):
            return data
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {key: value for key, value in data.items() if value is not None or key not in optional}

    @field_validator("*", mode="before")
    @classmethod
    def yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, which Python counts as 1."""
        field = cls.model_fields[info.field_name] if info.field_name else None
        if isinstance(value, bool) and field is not None and _is_number(field.annotation):
            raise ValueError(f"found {str(value).lower()}; a number is expected")
        return value


def _is_number(annotation: Any) -> bool:
    """Whether `annotation` is a number, or a number or None."""
    if annotation in (int, float):
        return True
    inner = [part for part in get_args(annotation) if part is not type(None)]
    return bool(inner) and get_origin(annotation) in (Annotated, Union, UnionType) and _is_number(inner[0])
