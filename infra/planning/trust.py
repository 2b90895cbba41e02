"""Which models may run foreign code: a model file asks for it, and only the stack's `trust` allows it.

A model file can make replicas run code that nobody here has read: Python files of a checkpoint, packages of an index.
Replicas share Ray and its token with all models of the stack, so one such file can do what every model can. Who
reviews a stack file sees the names of those that may.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from modelfleet.infra.catalog.foreign_code import foreign_code
from modelfleet.infra.planning.applications import mirror_plan
from modelfleet.infra.planning.signers import from_hub
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.document import KeyPath
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig

#: Where the settings of each section of `foreign-code.csv` stand in a model file.
SECTIONS: dict[str, tuple[KeyPath, ...]] = {
    "engine_kwargs": (("engine_config", "engine_kwargs"),),
    "runtime_env": (
        ("engine_config", "runtime_env"),
        ("deployment_config", "ray_actor_options", "runtime_env"),
    ),
}
SECTIONS["env_vars"] = tuple((*path, "env_vars") for path in SECTIONS["runtime_env"])

REMOTE: KeyPath = ("engine_config", "engine_kwargs", "trust_remote_code")
REVISION: KeyPath = ("engine_config", "revision")
COMMIT = re.compile(r"[0-9a-f]{40}")


def trust_findings(stack: LoadedStack, models: Iterable[LoadedModel]) -> list[Finding]:
    """Errors: foreign code that the stack does not trust, and trusted code that its owner can change at any time."""
    found: list[Finding] = []
    served = set()
    for model in models:
        served.add(model.config.model_id)
        if model.config.model_id not in stack.config.trust.foreign_code:
            found += _untrusted(stack, model)
        elif model.config.engine_config.engine_kwargs.get("trust_remote_code") and _moves(stack, model.config):
            found.append(model.document.finding(REVISION, _unpinned(model.config)))
    return [*found, *_names_nobody(stack, served)]


def trust_notices(model: LoadedModel) -> list[Finding]:
    """What a stack must trust before it serves this file."""
    return [
        model.document.finding(
            path,
            f"makes replicas run {runs}; a stack serves {model.config.model_id} only if its "
            "modelfleet:trust.foreignCode names it",
            Severity.NOTICE,
        )
        for path, runs in _asked(model.config)
    ]


def _untrusted(stack: LoadedStack, model: LoadedModel) -> list[Finding]:
    name = model.config.model_id
    fix = f"leave it out, or add {name} to modelfleet:trust.foreignCode in {stack.document.file} if you trust that code"
    return [
        model.document.finding(path, f"makes replicas run {runs}, and stack {stack.name} does not trust it; {fix}")
        for path, runs in _asked(model.config)
    ]


def _asked(model: ModelConfig) -> Iterator[tuple[KeyPath, str]]:
    """Where a model file asks for foreign code, and what that runs; no value, for an index's address has a password."""
    data = model.model_dump(mode="json", exclude_unset=True)
    for row in foreign_code():
        for section in SECTIONS[row.section]:
            path = (*section, *row.key)
            if row.found_in(_at(data, path)):
                yield path, row.runs
        if row.section == "engine_kwargs":
            for index, other in enumerate(model.scaling_config.fallback):
                if row.found_in(_at(other.engine_kwargs, row.key)):
                    yield ("scaling_config", "fallback", index, "engine_kwargs", *row.key), row.runs


def _at(data: Any, path: KeyPath) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _moves(stack: LoadedStack, model: ModelConfig) -> bool:
    """Whether the weights come from the Hub by a branch or a tag, which its owner can move."""
    return from_hub(mirror_plan(stack, model).source) and not is_commit(model.engine_config.revision)


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit of git, which nobody can move."""
    return COMMIT.fullmatch(revision or "") is not None


def _unpinned(model: ModelConfig) -> str:
    found = f"found {model.engine_config.revision!r}" if model.engine_config.revision else "is not set"
    return (
        f"{found}, and replicas run the repository's code: its owner could change it at any time; name a commit of 40 "
        "hexadecimal digits that you have read, or let `modelfleet check --fix --pin` write today's"
    )


def _names_nobody(stack: LoadedStack, served: set[str]) -> list[Finding]:
    """A warning for each name that no model has: a mistake, or trust that has outlived its model."""
    return [
        stack.finding(
            ("trust", "foreignCode", index),
            f"found {name!r}, and no model of this stack has that model_id; take it out or correct it",
            Severity.WARNING,
        )
        for index, name in enumerate(stack.config.trust.foreign_code)
        if name not in served
    ]
