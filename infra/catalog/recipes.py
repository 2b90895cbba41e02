"""Known-good settings of model families: one YAML file a family in `recipes/`, and the query which recipe a model has.

A file says which models it is for, what an expert would write for them, and what is known not to work, each with its
source and date. A model's recipe is the one whose `ids` match its Hub id, without regard to case. Where several match,
the longest pattern counts, so `*/Qwen3-Coder-*` goes before `*/Qwen3-*`. A checkpoint whose id matches none, such as a
fine-tune in a folder, has the recipe of its `model_type`.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase, translate
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from modelfleet.serving.config.catalogs import capability, environment_variables
from modelfleet.serving.config.document import KeyPath, read_document
from modelfleet.serving.config.engine_rules import PARSERS, argument_faults, parser_fault
from modelfleet.serving.config.errors import Finding, InputErrors
from modelfleet.serving.config.section import Section, Tokens
from modelfleet.serving.config.validation import KeyFault, near, validate

FOLDER = Path(__file__).parent / "recipes"

#: Why a setting is there. `tools` and `reasoning` make requests and answers what clients expect, `correct` makes the
#: model start and answer as it should, `fast` is a tested figure for a GPU.
Purpose = Literal["tools", "reasoning", "correct", "fast"]
Text = Annotated[str, Field(min_length=1)]
#: Two numbers with a dot, as in `9.0`.
Capability = Annotated[str, Field(pattern=r"^\d+\.\d$")]


class When(Section):
    """Conditions of a setting or of a known fault; all that are given must hold."""

    ids: list[Text] = Field(default_factory=list, description="The Hub id matches one of these patterns.")
    not_ids: list[Text] = Field(default_factory=list, description="The Hub id matches none of these patterns.")
    from_capability: Capability | None = Field(None, description="The GPU has at least this compute capability.")
    below_capability: Capability | None = Field(None, description="The GPU has a lower compute capability.")
    below_gpu_memory_gib: int | None = Field(None, description="The GPU has less memory, in GiB.")
    workers: list[int] = Field(default_factory=list, description="`num_workers` is one of these.")
    above_length: Tokens | None = Field(None, description="`max_total_tokens` is above this.")
    engine_kwargs: dict[str, list[Any]] = Field(
        default_factory=dict, description="Each argument has one of these values; null stands for an absent one."
    )


class Sourced(Section):
    """What a statement rests on. A part of a recipe without a source has the recipe's."""

    source: Text | None = Field(None, description="Repository, commit and path, or the model card.")
    date: datetime.date | None = Field(None, description="The source's own date, or when it was read.")


class Setting(Sourced):
    """Settings that belong together."""

    purpose: Purpose = Field(description="Why it is there.")
    why: Text | None = Field(None, description="The reason; `correct` and `fast` need one.")
    when: When = Field(default_factory=When, description="Where it holds; without it always.")
    engine_kwargs: dict[str, Any] = Field(default_factory=dict, description="Arguments of vLLM.")
    env_vars: dict[str, str] = Field(default_factory=dict, description="Environment of the engine.")
    max_total_tokens: Tokens | None = Field(None, description="A length that a file without one should have.")

    @model_validator(mode="after")
    def it_sets_something(self) -> Self:
        """A setting without a value is a mistake."""
        if not (self.engine_kwargs or self.env_vars or self.max_total_tokens):
            raise ValueError("sets nothing; give engine_kwargs, env_vars or max_total_tokens")
        return self

    @model_validator(mode="after")
    def what_is_not_plain_has_a_reason(self) -> Self:
        """A parser explains itself, a number does not."""
        if self.purpose in ("correct", "fast") and self.why is None:
            raise KeyFault("why", f"is missing; purpose {self.purpose!r} needs it")
        return self


class KnownBad(Sourced):
    """A combination that does not work, or works badly."""

    when: When = Field(description="The combination.")
    severity: Literal["error", "warning"] = Field(description="An error cannot work; a warning works badly.")
    message: Text = Field(description="What happens.")
    fix: Text = Field(description="What to do instead.")
    at: Text = Field(description="The key of the model file that the finding names.")


class Checkpoints(Sourced):
    """The same models with smaller weights, for the GPUs that gain by them."""

    format: Text = Field(description="Their number format, as messages say it.")
    why: Text = Field(description="What is gained there.")
    when: When = Field(description="Where something is gained.")
    ids: dict[Text, Text] = Field(min_length=1, description="Hub id of the smaller one by that of the whole one.")

    def of(self, hf_id: str) -> str | None:
        """The smaller checkpoint of a model; None when there is none."""
        return next((smaller for whole, smaller in self.ids.items() if whole.lower() == hf_id.lower()), None)


class Recipe(Section):
    """One family of models."""

    family: Text = Field(description="The family's name, as messages say it.")
    ids: list[Text] = Field(min_length=1, description="Patterns of Hub ids, without regard to case.")
    model_types: list[Text] = Field(default_factory=list, description="`model_type` in config.json.")
    source: Text = Field(description="What the settings rest on.")
    date: datetime.date = Field(description="The source's own date, or when it was read.")
    settings: list[Setting] = Field(default_factory=list, description="In order: a later one replaces an earlier.")
    checkpoints: list[Checkpoints] = Field(default_factory=list, description="In order: the last that fits counts.")
    known_bad: list[KnownBad] = Field(default_factory=list, description="What does not work.")

    def basis(self, part: Sourced) -> str:
        """Source and date of a part."""
        return f"{part.source or self.source}, {part.date or self.date}"

    def longest_match(self, hf_id: str) -> int:
        """Length of the longest pattern that matches; 0 when none does."""
        if not _any_of(tuple(self.ids)).match(hf_id.lower()):
            return 0
        return max(len(pattern) for pattern in self.ids if id_matches(hf_id, pattern))


def id_matches(hf_id: str, pattern: str) -> bool:
    """Whether a Hub id matches a pattern with `*` and `?`, without regard to case."""
    return fnmatchcase(hf_id.lower(), pattern.lower())


@cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One expression for all: a plan asks for each model whether one of a hundred recipes is its own."""
    return re.compile("|".join(translate(pattern.lower()) for pattern in patterns))


def recipe_of(hf_id: str, model_type: str | None = None, recipes: Mapping[str, Recipe] | None = None) -> Recipe | None:
    """The recipe of a model: by its Hub id, else by its `model_type`; None when there is none."""
    known = default_recipes() if recipes is None else recipes
    best = max(known.values(), key=lambda recipe: recipe.longest_match(hf_id), default=None)
    if best is not None and best.longest_match(hf_id):
        return best
    return next((recipe for recipe in known.values() if model_type in recipe.model_types), None)


@cache
def default_recipes() -> Mapping[str, Recipe]:
    """The recipes of the folder next to this module by file name, read once."""
    return read_recipes(FOLDER)


def read_recipes(folder: Path) -> dict[str, Recipe]:
    """The recipes of a folder by file name; raises `InputErrors` with every fault of every file."""
    recipes: dict[str, Recipe] = {}
    findings: list[Finding] = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            recipes[path.name] = read_recipe(path)
        except InputErrors as error:
            findings += error.findings
    if findings := [*findings, *_claimed_twice(recipes)]:
        raise InputErrors(findings)
    return recipes


def read_recipe(path: Path) -> Recipe:
    """One recipe; raises `InputErrors` with the line and key of each fault."""
    if (recipe := _read_quickly(path)) is not None:
        return recipe
    document = read_document(path, path.name)
    read = validate(Recipe, document, document.data)
    if isinstance(read, list):
        raise InputErrors(read)
    if faults := [document.finding(place, message) for place, message in _faults(read)]:
        raise InputErrors(faults)
    return read


def _read_quickly(path: Path) -> Recipe | None:
    """By libyaml, which is ten times as fast as the reader that knows lines; None for a file that has faults."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        recipe = Recipe.model_validate(yaml.load(path.read_text(encoding="utf-8"), Loader=loader))  # noqa: S506
    except (yaml.YAMLError, ValueError):  # pydantic's errors and those of UTF-8 are ValueErrors
        return None
    return None if any(_faults(recipe)) else recipe


def _faults(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Names and values that vLLM does not have."""
    for index, setting in enumerate(recipe.settings):
        for name, value in setting.engine_kwargs.items():
            path: KeyPath = ("settings", index, "engine_kwargs", name)
            yield from (((*path, *inside), message) for inside, message in argument_faults(name, value))
            if name in PARSERS and (fault := parser_fault(name, value)):
                yield path, fault
        for name in setting.env_vars:
            if name.startswith("VLLM_") and name not in environment_variables():
                yield ("settings", index, "env_vars", name), f"unknown, {near(name, environment_variables())}"
    for index, bad in enumerate(recipe.known_bad):
        for name, values in bad.when.engine_kwargs.items():
            for message in {fault for one in values if one is not None for _, fault in argument_faults(name, one)}:
                yield ("known_bad", index, "when", "engine_kwargs", name), message


def _claimed_twice(recipes: Mapping[str, Recipe]) -> Iterator[Finding]:
    """A pattern or model_type in two files, of which one would never count."""
    for key in ("ids", "model_types"):
        first: dict[str, str] = {}
        for file, recipe in recipes.items():
            for name in getattr(recipe, key):
                if (other := first.setdefault(name.lower(), file)) != file:
                    yield Finding(file, 0, key, f"found {name!r}, which {other} has too")


def within(found: tuple[int, int], least: str | None, below: str | None) -> bool:
    """Whether a compute capability reaches `least` and stays below `below`; None asks for nothing."""
    return (least is None or found >= capability(least)) and (below is None or found < capability(below))
