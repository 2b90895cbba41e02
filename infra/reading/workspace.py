"""All I/O of planning: from a project folder and a stack's name to the arguments of `plan()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modelfleet.infra.planning import Plan, plan
from modelfleet.infra.planning.plan import CodeArtifact
from modelfleet.infra.reading.adapters import with_listed_adapters
from modelfleet.infra.reading.code import code_artifact
from modelfleet.infra.reading.image import image_source
from modelfleet.infra.reading.jwks import read_jwks
from modelfleet.infra.reading.machine import this_machine
from modelfleet.infra.reading.measured import known_catalog
from modelfleet.infra.reading.models import read_facts
from modelfleet.infra.reading.prices import with_known_prices
from modelfleet.infra.reading.signatures import key_findings, signature_findings
from modelfleet.infra.stack import LoadedStack, Sections, load_stack, stack_of
from modelfleet.serving.config.document import Document
from modelfleet.serving.config.errors import Finding, InputErrors, errors_in
from modelfleet.serving.config.load import LoadedModel, load_models
from modelfleet.serving.config.validation import near


@dataclass(frozen=True)
class Workspace:
    """What was read: valid models, the stack, the code, and every finding about the model files."""

    models: tuple[LoadedModel, ...]
    stack: LoadedStack
    code: CodeArtifact
    findings: tuple[Finding, ...]


def read_workspace(root: Path, stack_name: str, sections: Sections = MappingProxyType({})) -> Workspace:
    """Read a stack and the model files that it names; keys in `sections` replace the file's.

    Raises `InputErrors` only for the stack file itself.
    """
    stack = load_stack(root, stack_name, sections)
    paths, findings = model_files(root, stack)
    loading = load_models(paths, root)
    return Workspace(loading.models, stack, code_artifact(), (*findings, *loading.findings))


def workspace_of(
    name: str,
    models: Sequence[str | Path | Mapping[str, Any]],
    settings: Mapping[str, Any],
    root: Path,
    *,
    region: str | None = None,
    sections: Sections = MappingProxyType({}),
) -> Workspace:
    """What a program says instead of files: model files, globs or contents, and a stack file's keys.

    Raises `InputErrors` only for the settings.
    """
    document = Document(f"Fleet {name}", {"config": _stack_keys(settings, region)}, {})
    stack = stack_of(document, name, sections)
    paths, findings = _paths(name, [one for one in models if not isinstance(one, Mapping)], root)
    given = {f"Fleet {name}: models[{index}]": one for index, one in enumerate(models) if isinstance(one, Mapping)}
    loading = load_models(paths, root, [Document(where, one, {}) for where, one in given.items()])
    return Workspace(loading.models, stack, code_artifact(), (*findings, *loading.findings))


def _stack_keys(settings: Mapping[str, Any], region: str | None) -> dict[str, Any]:
    keys = {f"modelfleet:{key}": value for key, value in {"models": ["*"], **settings}.items()}
    return {**keys, "aws:region": region} if region else keys


def _paths(name: str, patterns: Sequence[str | Path], root: Path) -> tuple[list[Path], list[Finding]]:
    found: dict[Path, None] = {}
    findings = []
    for pattern in patterns:
        matched = sorted(root.glob(str(pattern))) if not Path(pattern).is_absolute() else [Path(pattern)]
        if not matched or not all(path.is_file() for path in matched):
            findings.append(
                Finding(f"Fleet {name}", 0, "models", f"found {str(pattern)!r}, which matches no file in {root}")
            )
        found |= dict.fromkeys(path for path in matched if path.is_file())
    return list(found), findings


def make_plan(
    root: Path, stack_name: str, *, network: bool = False, deploying: bool = True, ask_issuer: bool = False
) -> Plan:
    """Read the files and plan; raises `InputErrors` with the faults of all files and of the plan at once.

    `network` allows AWS's prices, the mirror and the Hub to supply what the catalog lacks. `deploying` is False when
    the plan is only shown. `ask_issuer`: the gateway's files are made of it, so the keys in `jwt.jwks` are read from
    their URL.
    """
    workspace = read_workspace(root, stack_name)
    return plan_workspace(workspace, root, network=network, deploying=deploying, ask_issuer=ask_issuer)


def plan_workspace(
    workspace: Workspace, root: Path, *, network: bool = False, deploying: bool = True, ask_issuer: bool = False
) -> Plan:
    """`make_plan` for what was read already."""
    errors = errors_in(workspace.findings)
    stack = workspace.stack
    models, listed = with_listed_adapters(workspace.models)
    errors += errors_in(listed)
    known = known_catalog(root)
    facts, unrunnable = read_facts(models, root, stack, network=network, catalog=known)
    errors += unrunnable
    jwt_keys, issuer = read_jwks(stack, root, network=network, needed=ask_issuer)
    errors += errors_in(issuer)
    catalog = with_known_prices(known, stack, root, network=network)
    try:
        made = plan(
            models,
            stack,
            code=workspace.code,
            catalog=catalog,
            facts=facts,
            image=image_source() if stack.config.target.makes_cluster else None,
            machine=this_machine(stack, root) if stack.config.target.on_this_machine else None,
            deploying=deploying,
            jwt_keys=jwt_keys,
        )
    except InputErrors as refused:
        raise InputErrors([*errors, *refused.findings]) from None
    signed = list(key_findings(stack))
    if stack.config.trust.signers:
        # A run that buys nodes asks the Hub, too.
        signed += signature_findings(made, network=network or deploying)
    if errors := [*errors, *errors_in(signed)]:
        raise InputErrors(errors)
    return replace(made, notices=tuple(sorted([*workspace.findings, *listed, *made.notices, *signed, *issuer])))


def model_files(root: Path, stack: LoadedStack) -> tuple[list[Path], list[Finding]]:
    """The files under models/ that the stack's `models` match, and a finding for each pattern without a match."""
    folder = root / "models"
    files = sorted(folder.rglob("*.yaml"))
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    chosen: set[Path] = set()
    findings: list[Finding] = []
    for index, pattern in enumerate(stack.config.models):
        matched = _matching(folder, pattern.removesuffix(".yaml")).intersection(files)
        if not matched:
            message = f"none of the {len(files)} files in models/ matches {pattern!r}; {near(pattern, names)}"
            findings.append(stack.finding(("models", index), message))
        chosen |= matched
    return [path for _, path in sorted(zip(names, files, strict=True)) if path in chosen], findings


def _matching(folder: Path, pattern: str) -> set[Path]:
    """What a glob matches: `*` stays in a folder, `**` spans any number. One that leaves `folder` matches nothing."""
    if ".." in Path(pattern).parts:
        return set()
    try:
        return set(folder.glob(f"{pattern}/*.yaml" if Path(pattern).name == "**" else f"{pattern}.yaml"))
    except (NotImplementedError, ValueError):
        return set()  # an absolute path, or `**` next to other characters
