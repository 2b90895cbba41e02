"""The base of every part of a stack file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


def _key(name: str) -> str:
    """The key in the file. No field has an `alias`: type checkers would disagree about the name of its argument."""
    return "target" if name == "target_name" else to_camel(name)


class StackSection(BaseModel):
    """Base of every part: unknown keys are refused, keys are camelCase in the file."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=_key,
        validate_by_name=True,
        validate_by_alias=True,
        loc_by_alias=True,
        protected_namespaces=(),
        validate_default=True,
    )
