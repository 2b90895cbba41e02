"""Loading model files: every fault of every file at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serving.config.document import Document, read_document
from serving.config.engine_rules import engine_findings
from serving.config.errors import Finding, InputErrors, errors_in
from serving.config.generate_kwargs import generate_kwargs_findings
from serving.config.legacy import normalise
from serving.config.rules import rule_findings
from serving.config.schema import ModelConfig
from serving.config.validation import shown, validate


@dataclass(frozen=True)
class LoadedModel:
    """A model file that is valid, with where it came from."""

    config: ModelConfig
    document: Document

    @property
    def file(self) -> str:
        """The file as the user named it."""
        return self.document.file


@dataclass(frozen=True)
class Loading:
    """What loading a set of files gave: the valid models, and all findings of all files, sorted."""

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
    findings = sorted(set(findings))
    if isinstance(result, list) or errors_in(findings):
        return None, findings
    return LoadedModel(result, today), findings


def _is_answered(finding: Finding, earlier: list[Finding]) -> bool:
    """A missing engine_config is no second fault where Aviary's model_config stands for it."""
    return finding.path == "engine_config" and any(f.path == "model_config" for f in errors_in(earlier))


def load_models(paths: Iterable[Path], root: Path | None = None) -> Loading:
    """All files; two files with the same model_id are an error in the later one."""
    models: list[LoadedModel] = []
    findings: list[Finding] = []
    for path in paths:
        name = str(path.relative_to(root)) if root and path.is_relative_to(root) else str(path)
        model, found = load_model(path, name)
        findings += found
        if model is not None:
            models.append(model)
    findings += _same_id_twice(models)
    return Loading(tuple(m for m in models if m.config.enabled), tuple(sorted(findings)))


def _same_id_twice(models: Iterable[LoadedModel]) -> list[Finding]:
    by_id: defaultdict[str, list[LoadedModel]] = defaultdict(list)
    for model in models:
        by_id[model.config.model_id].append(model)
    key = ("engine_config", "model_id")
    return [
        again.document.finding(key, f"found {model_id!r}, which {first.file} has too; a model_id is used once")
        for model_id, (first, *others) in by_id.items()
        for again in others
    ]
