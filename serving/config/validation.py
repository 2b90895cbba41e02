"""From pydantic's errors to findings with file, line, key path, what was found and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from modelfleet.serving.config.document import Document, KeyPath, shortened
from modelfleet.serving.config.errors import Finding

T = TypeVar("T", bound=BaseModel)


class KeyFault(ValueError):
    """A broken rule of a section; `key` is the one to look at."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(message)


@dataclass(frozen=True)
class Matching:
    """Text that matches `pattern`, which `words` say for people: `Annotated[str, Matching(r"^cr-[0-9a-f]+$", "cr-…")]`.

    Editors that read the JSON Schema show the words too (`patternErrorMessage`).
    """

    pattern: str
    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._matches, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": self.pattern, "patternErrorMessage": self.words}

    def _matches(self, value: str) -> str:
        if not re.search(self.pattern, value):
            raise ValueError(f"found {shown(value)}; allowed is {self.words}")
        return value


def validate(schema: type[T], document: Document, data: Any, at: KeyPath = ()) -> T | list[Finding]:
    """The validated model, or every finding. `at` is the path of `data` in the document."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        return list(_findings(error, schema, document, at))


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The most similar of `allowed`, whatever the case of `word`; None when none is near."""
    folded = {name.lower(): name for name in sorted(allowed)}
    close = difflib.get_close_matches(word.lower()[:100], folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def near(word: str, allowed: Iterable[str], *, at_most: int = 20) -> str:
    """`did you mean X?` when one of `allowed` is similar, or else the list when it is short enough to read."""
    names = sorted(allowed)
    if (close := nearest(word, names)) is not None:
        return f"did you mean {close}?"
    if not names:
        return "none is allowed"
    return (
        f"allowed are {', '.join(names)}" if len(names) <= at_most else f"and none of the {len(names)} names is similar"
    )


def shown(value: Any) -> str:
    """A value as a message shows it: as YAML writes it, short."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict | list):
        kind = "a mapping" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}"
    return shortened(repr(value), 60)


def _findings(error: ValidationError, schema: type[BaseModel], document: Document, at: KeyPath) -> Iterator[Finding]:
    messages: dict[KeyPath, list[str]] = {}
    for fault in error.errors(include_url=False, include_context=True):
        location = _without_branches(schema, fault["loc"])
        if isinstance(key_fault := fault.get("ctx", {}).get("error"), KeyFault):
            location = (*location, key_fault.key)
        messages.setdefault(location, []).append(_message(fault, schema, location))
    for location, found in messages.items():
        yield document.finding((*at, *location), _one_of(found))


def _one_of(messages: list[str]) -> str:
    """A union says what each of its branches wants: `found X; text is expected or a list is expected`."""
    first, _, _ = messages[0].partition("; ")
    wanted = list(dict.fromkeys(message.removeprefix(f"{first}; ") for message in messages))
    return messages[0] if len(wanted) == 1 else f"{first}; {' or '.join(wanted)}"


def _without_branches(schema: type[BaseModel], location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The location in the file: pydantic adds the tried branch of a union (`list[...]`, `str`) after the field."""
    kept: list[str | int] = []
    current: Any = schema
    for part in location:
        if isinstance(part, str) and current is None and _is_branch(part):
            continue
        kept.append(part)
        if isinstance(part, str):
            field = _field(current, part) if current is not None else None
            current = _model_in(field.annotation) if field is not None else None
    return tuple(kept)


def _is_branch(part: str) -> bool:
    return "[" in part or part in {"str", "int", "float", "bool"}


_SENTENCES = {
    "int_parsing": "a whole number is expected",
    "int_type": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "float_parsing": "a number is expected",
    "float_type": "a number is expected",
    "finite_number": "a finite number is expected",
    "bool_parsing": "true or false is expected",
    "bool_type": "true or false is expected",
    "string_type": "text is expected; put it in quotes",
    "list_type": "a list is expected",
    "dict_type": "a mapping is expected",
    "model_type": "a mapping is expected",
    "model_attributes_type": "a mapping is expected",
}


def _message(fault: Any, schema: type[BaseModel], location: tuple[str | int, ...]) -> str:
    context = fault.get("ctx", {})
    found = f"found {shown(fault.get('input'))}"
    match fault["type"]:
        case "extra_forbidden":
            return _unknown(schema, location)
        case "missing":
            return "is missing; it is required"
        case "value_error":
            return str(context["error"])
        case "greater_than_equal":
            return f"{found}; must be at least {context['ge']}"
        case "greater_than":
            return f"{found}; must be above {context['gt']}"
        case "less_than_equal":
            return f"{found}; must be at most {context['le']}"
        case "less_than":
            return f"{found}; must be below {context['lt']}"
        case "literal_error":
            return f"{found}; allowed are {context['expected']}"
        case kind:
            return f"{found}; {_SENTENCES.get(kind) or _uncapital(str(fault['msg']))}"


def _unknown(schema: type[BaseModel], location: tuple[str | int, ...]) -> str:
    """The message for an unknown key: where it belongs, or else the nearest name."""
    key, section = str(location[-1]), _section_at(schema, location[:-1])
    explain = getattr(section, "explain", None)
    if explain is not None and (reason := explain(key)) is not None:
        return str(reason)
    if homes := [path for path in _homes(schema, key) if path != location[:-1]]:
        return f"unknown here; it belongs {' or '.join(_in(path) for path in homes)}"
    return f"unknown, {near(key, _names(section), at_most=30)}"


def _in(path: tuple[str, ...]) -> str:
    return f"in {'.'.join(path)}" if path else "at the top level"


def _homes(section: type[BaseModel], key: str, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The sections that have `key`."""
    found = [path] if key in _names(section) else []
    for name, field in section.model_fields.items():
        if (inner := _model_in(field.annotation)) is not None:
            found += _homes(inner, key, (*path, field.alias or name))
    return found


def _section_at(schema: type[BaseModel], location: tuple[str | int, ...]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = schema
    for part in location:
        if current is not None and isinstance(part, str) and (field := _field(current, part)) is not None:
            current = _model_in(field.annotation)
    return current


def _names(section: type[BaseModel] | None) -> list[str]:
    """The keys that a section allows."""
    return [] if section is None else [field.alias or name for name, field in section.model_fields.items()]


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


def _uncapital(text: str) -> str:
    return text[:1].lower() + text[1:]
