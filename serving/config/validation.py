"""From pydantic's errors to findings with file, line, key path, what was found and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from serving.config.document import Document, KeyPath
from serving.config.errors import Finding


T = TypeVar("T", bound=BaseModel)


def validate(schema: type[T], document: Document, data: Any, at: KeyPath = ()) -> T | list[Finding]:
    """The validated model, or every finding. `at` is where `data` stands in the document."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        return list(_findings(error, schema, document, at))


def near(word: str, allowed: list[str]) -> str:
    """`, did you mean X?` when one of `allowed` is near, else the whole list."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"allowed are {', '.join(allowed)}"


def _findings(error: ValidationError, schema: type[BaseModel], document: Document, at: KeyPath) -> Iterator[Finding]:
    for fault in error.errors(include_url=False, include_context=True):
        location = tuple(part for part in fault["loc"] if not _is_union_branch(part))
        path = (*at, *location)
        yield document.finding(path, _message(fault, schema, location))


def _is_union_branch(part: str | int) -> bool:
    """pydantic adds the tried branch of a union (`list[...]`, `function-before[...]`) to the location."""
    return isinstance(part, str) and ("[" in part or part in {"str", "int", "float", "bool"})


def _message(fault: Any, schema: type[BaseModel], location: tuple[str | int, ...]) -> str:
    match fault["type"]:
        case "extra_forbidden":
            return f"unknown, {near(str(location[-1]), sorted(_keys(schema, location[:-1])))}"
        case "missing":
            return "is missing; it is required"
        case "value_error":
            return str(fault["ctx"]["error"])
        case _:
            return f"found {_shown(fault.get('input'))}; {_uncapital(str(fault['msg']))}"


def _keys(schema: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """The keys that the section at `location` allows."""
    current: Any = schema
    for part in location:
        if isinstance(part, str) and (field := _field(current, part)) is not None:
            current = _model_in(field.annotation)
        if current is None:
            return []
    return [field.alias or name for name, field in current.model_fields.items()]


def _field(model: type[BaseModel], key: str) -> Any:
    return next((f for name, f in model.model_fields.items() if key in (name, f.alias)), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside `Model | None`, `list[Model]` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _uncapital(text: str) -> str:
    return text[:1].lower() + text[1:]
