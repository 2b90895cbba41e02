"""The rules: one YAML file a layer in `rules/`, each rule with its pattern, sentence, fix, consequence and source.

    - id: gated-model
      on: [application, replica, log]          # kinds of evidence
      pattern: (?P<what>\\S+) is gated on the Hugging Face Hub
      sentence: "{model}: the token in use may not read {what}, a gated repository"
      fix: accept the licence on the model's page, then set a token …
      then: the mirror Job downloads the weights, and the replica starts
      source: …
      date: 2026-11-29

Named groups of `pattern` and {object}, {model}, {text}, {last} (line), {stack}, {namespace} (of a mirror Job its own)
and {mirror_namespace} fill the sentences. A rule that is marked as `symptom` is reported only if no cause explains it.
Adding a rule edits no Python.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from modelfleet.doctor.evidence import Layer
from modelfleet.serving.config.document import read_document
from modelfleet.serving.config.errors import Finding, InputErrors
from modelfleet.serving.config.section import Section
from modelfleet.serving.config.validation import validate

FOLDER = Path(__file__).parent / "rules"

Text = Annotated[str, Field(min_length=1)]
#: Names that every sentence may use.
COMMON = frozenset({"object", "model", "text", "last", "stack", "namespace", "mirror_namespace", "file"})
_BRACES = re.compile(r"\{(\w+)\}")


class Rule(Section):
    """One rule as its file has it."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    on: Annotated[list[Text], Field(min_length=1, description="Kinds of evidence that it looks at.")]
    pattern: Text = Field(description="A regular expression, searched in the evidence without regard to case.")
    sentence: Text = Field(description="What is wrong, in one sentence.")
    fix: Text = Field(description="The command to run or the line to change.")
    then: Text = Field(description="What happens then.")
    key: Text | None = Field(
        None,
        description="Key of the model file to change, of `a or b` the one that it has; or `stack:` and a stack's key.",
    )
    symptom: bool = Field(False, description="Reported only when no cause explains it.")
    source: Text = Field(description="File and version, or page, in which the words of the pattern were read.")
    date: datetime.date = Field(description="When they were last compared with it.")

    @field_validator("pattern")
    @classmethod
    def pattern_compiles(cls, pattern: str) -> str:
        """A broken expression would end the command."""
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def every_name_is_known(self) -> Self:
        """A name that is neither common nor a group of the pattern would stay empty."""
        known = COMMON | re.compile(self.pattern).groupindex.keys()
        used = {name for text in (self.sentence, self.fix, self.then) for name in _BRACES.findall(text)}
        if unknown := sorted(used - known):
            raise ValueError(f"uses {', '.join(unknown)}, which the pattern does not name")
        return self

    def match(self, text: str) -> re.Match[str] | None:
        """Where the pattern is in a text."""
        return _compiled(self.pattern).search(text)


class _File(Section):
    """One file of rules."""

    layer: Layer
    rules: list[Rule]


@dataclass(frozen=True)
class Placed:
    """A rule with its layer."""

    rule: Rule
    layer: Layer


@cache
def default_rules() -> tuple[Placed, ...]:
    """All rules in the order of cause; raises `InputErrors` when a file is wrong, for they are ours."""
    read = [_read(path) for path in sorted(FOLDER.glob("*.yaml"))]
    files = sorted(read, key=lambda file: list(Layer).index(file.layer))
    return tuple(Placed(rule, file.layer) for file in files for rule in file.rules)


def filled(template: str, values: dict[str, Any]) -> str:
    """A sentence with its names replaced; braces that are no name stay, as in a JSON patch."""
    return _BRACES.sub(lambda found: str(values.get(found[1], found[0])), template)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


def _read(path: Path) -> _File:
    document = read_document(path)
    found = validate(_File, document, document.data)
    if isinstance(found, list):
        raise InputErrors(found)
    ids = [rule.id for rule in found.rules]
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise InputErrors([Finding(str(path), 0, "rules", f"has {', '.join(twice)} twice")])
    return found
