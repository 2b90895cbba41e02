"""The reading half: from a project folder and a stack's name to what `plan()` takes. All I/O of planning is here."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from infra.catalog import default_catalog
from infra.model_facts import read_facts
from infra.planning import Plan, plan
from infra.planning.plan import CodeArtifact
from infra.prices import with_known_prices
from infra.stack import LoadedStack, load_stack
from serving.config.errors import Finding, InputErrors, errors_in
from serving.config.load import LoadedModel, load_models
from serving.config.validation import near

#: Timestamp of every entry of the code zip: the earliest that ZIP can say, so that equal code gives equal bytes.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
SERVING = Path(__file__).resolve().parent.parent / "serving"


@dataclass(frozen=True)
class Workspace:
    """What was read: valid models, the stack, the code, and every finding about the model files."""

    models: tuple[LoadedModel, ...]
    stack: LoadedStack
    code: CodeArtifact
    findings: tuple[Finding, ...]


def read_workspace(root: Path, stack_name: str) -> Workspace:
    """Read a stack and the model files that it names; raises `InputErrors` only for the stack file itself."""
    stack = load_stack(root, stack_name)
    paths, findings = model_files(root, stack)
    loading = load_models(paths, root)
    return Workspace(loading.models, stack, code_artifact(), (*findings, *loading.findings))


def open_workspace(root: Path, stack_name: str) -> tuple[tuple[LoadedModel, ...], LoadedStack, CodeArtifact]:
    """Model files that the stack names, the stack, and the code; raises `InputErrors` with every fault of all files."""
    workspace = read_workspace(root, stack_name)
    if errors := errors_in(workspace.findings):
        raise InputErrors(errors)
    return workspace.models, workspace.stack, workspace.code


def make_plan(root: Path, stack_name: str, *, network: bool = False, deploying: bool = True) -> Plan:
    """Read the files and plan; raises `InputErrors` with the faults of all files and of the plan at once.

    `network` lets prices, the mirror and the Hub be asked for what the catalog does not know; `deploying` is False
    where the plan is only looked at.
    """
    workspace = read_workspace(root, stack_name)
    errors = errors_in(workspace.findings)
    models, stack = workspace.models, workspace.stack
    facts, unrunnable = read_facts(models, root, stack, network=network)
    errors += unrunnable
    catalog = with_known_prices(default_catalog(), stack, root, network=network)
    try:
        made = plan(models, stack, code=workspace.code, catalog=catalog, facts=facts, deploying=deploying)
    except InputErrors as refused:
        raise InputErrors([*errors, *refused.findings]) from None
    if errors:
        raise InputErrors(errors)
    return replace(made, notices=tuple(sorted([*workspace.findings, *made.notices])))


def model_files(root: Path, stack: LoadedStack) -> tuple[list[Path], list[Finding]]:
    """The files under models/ that the stack's `models` match, and a finding for each pattern without a match."""
    names = {
        p.relative_to(root / "models").with_suffix("").as_posix(): p for p in sorted((root / "models").rglob("*.yaml"))
    }
    chosen: dict[str, Path] = {}
    findings: list[Finding] = []
    for index, pattern in enumerate(stack.config.models):
        matched = {name: path for name, path in names.items() if _matches(name, pattern.removesuffix(".yaml"))}
        if not matched:
            message = f"no file of models/ ({len(names)} there) matches {pattern!r}; {near(pattern, sorted(names))}"
            findings.append(stack.finding(("models", index), message))
        chosen |= matched
    return [chosen[name] for name in sorted(chosen)], findings


def _matches(name: str, pattern: str) -> bool:
    """Whether a path matches a glob, folder by folder: `*` stays inside a folder, `**` is any number of them."""
    parts, wanted = name.split("/"), pattern.split("/")
    if wanted[0] == "**":
        rest = "/".join(wanted[1:]) or "*"
        return any(_matches("/".join(parts[start:]), rest) for start in range(len(parts)))
    if not fnmatchcase(parts[0], wanted[0]):
        return False
    if len(parts) == 1 or len(wanted) == 1:
        return len(parts) == len(wanted)
    return _matches("/".join(parts[1:]), "/".join(wanted[1:]))


def code_artifact() -> CodeArtifact:
    """The code zip by its content's hash."""
    return CodeArtifact(hashlib.sha256(build_code_zip()).hexdigest())


def build_code_zip(serving: Path = SERVING) -> bytes:
    """The serving package as a zip, the same bytes for the same files: sorted, fixed times and modes, stored."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(serving.rglob("*")):
            name = path.relative_to(serving.parent).as_posix()
            if not path.is_file() or "__pycache__" in path.parts or path.name.startswith("."):
                continue
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()
