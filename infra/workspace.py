"""The reading half: from a project folder and a stack's name to what `plan()` takes. All I/O of planning is here."""

from __future__ import annotations

import hashlib
import io
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

from infra.planning import Plan, plan
from infra.planning.plan import CodeArtifact
from infra.stack import LoadedStack, load_stack
from serving.config.errors import Finding, InputErrors
from serving.config.load import LoadedModel, load_models
from serving.config.validation import near

#: Timestamp of every entry of the code zip: the earliest that ZIP can say, so that equal code gives equal bytes.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
SERVING = Path(__file__).resolve().parent.parent / "serving"


def open_workspace(root: Path, stack_name: str) -> tuple[tuple[LoadedModel, ...], LoadedStack, CodeArtifact]:
    """Model files that the stack names, the stack, and the code; raises `InputErrors` with every fault of all files."""
    stack = load_stack(root, stack_name)
    paths, findings = model_files(root, stack)
    loading = load_models(paths, root)
    if findings:
        raise InputErrors([*findings, *loading.findings])
    return loading.valid(), stack, code_artifact()


def make_plan(root: Path, stack_name: str) -> Plan:
    """Read the files and plan; raises `InputErrors`."""
    models, stack, code = open_workspace(root, stack_name)
    return plan(models, stack, code=code)


def model_files(root: Path, stack: LoadedStack) -> tuple[list[Path], list[Finding]]:
    """The files under models/ that the stack's `models` match, and a finding for each pattern without a match."""
    names = {
        p.relative_to(root / "models").with_suffix("").as_posix(): p for p in sorted((root / "models").rglob("*.yaml"))
    }
    chosen: dict[str, Path] = {}
    findings: list[Finding] = []
    for index, pattern in enumerate(stack.config.models):
        matched = {name: path for name, path in names.items() if fnmatchcase(name, pattern.removesuffix(".yaml"))}
        if not matched:
            message = f"no file of models/ ({len(names)} there) matches {pattern!r}; {near(pattern, sorted(names))}"
            findings.append(stack.finding(("models", index), message))
        chosen |= matched
    return [chosen[name] for name in sorted(chosen)], findings


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
