"""Loading model files: every fault of every file at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modelfleet.serving.config.document import Document, read_document
from modelfleet.serving.config.engine_rules import engine_findings
from modelfleet.serving.config.errors import Finding, InputErrors, errors_in
from modelfleet.serving.config.generate_kwargs import generate_kwargs_findings
from modelfleet.serving.config.holes import hole_findings
from modelfleet.serving.config.rayllm.legacy import normalise
from modelfleet.serving.config.rules import rule_findings
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.validation import shown, validate


@dataclass(frozen=True)
class LoadedModel:
    """A valid model file, with its document."""

    config: ModelConfig
    document: Document

    @property
    def file(self) -> str:
        """The file as the user named it."""
        return self.document.file


@dataclass(frozen=True)
class Loading:
    """The result of loading a set of files: the valid models, and all findings of all files, sorted."""

    models: tuple[LoadedModel, ...]
    findings: tuple[Finding, ...]

    def valid(self) -> tuple[LoadedModel, ...]:
        """The models; raises `InputErrors` with every error when there is one."""
        if errors := errors_in(self.findings):
            raise InputErrors(errors)
        return self.models


def load_model(path: Path, name: str | None = None) -> tuple[LoadedModel | None, list[Finding]]:
    """One model file and its findings; no model when one of them is an error."""
    try:
        document = read_document(path, name)
    except InputErrors as error:
        return None, list(error.findings)
    return model_of(document)


def model_of(document: Document) -> tuple[LoadedModel | None, list[Finding]]:
    """The model in a document and all findings about it; no model when one of them is an error."""
    findings = list(document.findings)
    if not isinstance(document.data, dict):
        expected = "a mapping with engine_config and scaling_config is expected"
        what = "is empty" if document.data is None else f"found {shown(document.data)}"
        return None, [*findings, document.finding((), f"{what}; {expected}")]
    rewriter = normalise(document)
    findings += rewriter.findings
    today = rewriter.result()
    result = validate(ModelConfig, today, today.data)
    if isinstance(result, list):
        findings += [finding for finding in result if not _is_answered(finding, findings)]
    for rules in (rule_findings, engine_findings, generate_kwargs_findings):
        findings += rules(today, today.data)
    # A value that is left open is that one fault, whatever other rules say to it.
    holes = {finding.path: finding for finding in hole_findings(today, today.data)}
    findings = sorted({*(finding for finding in findings if finding.path not in holes), *holes.values()})
    if isinstance(result, list) or errors_in(findings):
        return None, findings
    return LoadedModel(result, today), findings


def _is_answered(finding: Finding, earlier: list[Finding]) -> bool:
    """A missing engine_config is not a second fault where Aviary's model_config is in its place."""
    return finding.path == "engine_config" and any(f.path == "model_config" for f in errors_in(earlier))


def load_models(paths: Iterable[Path], root: Path | None = None, documents: Iterable[Document] = ()) -> Loading:
    """All files, and documents that a program made; a model_id that comes twice is an error in the later one."""
    models: list[LoadedModel] = []
    findings: list[Finding] = []
    for model, found in [*(load_model(path, _shown(path, root)) for path in paths), *map(model_of, documents)]:
        findings += found
        if model is not None:
            models.append(model)
    findings += _same_id_twice(models)
    return Loading(tuple(m for m in models if m.config.enabled), tuple(sorted(findings)))


def _shown(path: Path, root: Path | None) -> str:
    return str(path.relative_to(root)) if root and path.is_relative_to(root) else str(path)


def _same_id_twice(models: Iterable[LoadedModel]) -> list[Finding]:
    by_id: defaultdict[str, list[LoadedModel]] = defaultdict(list)
    for model in models:
        by_id[model.config.model_id].append(model)
    key = ("engine_config", "model_id")
    return [
        again.document.finding(key, f"found {model_id!r}, which {first.file} has too; a model_id must be unique")
        for model_id, (first, *others) in by_id.items()
        for again in others
    ]
