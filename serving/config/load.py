"""Loading model files: every fault of every file at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serving.config.document import Document, read_document
from serving.config.errors import Finding, InputErrors, errors_in
from serving.config.schema import ModelConfig
from serving.config.validation import validate


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
    findings = list(document.findings)
    if not isinstance(document.data, dict):
        expected = "expected a mapping with engine_config and scaling_config"
        what = "is empty" if document.data is None else f"is a {type(document.data).__name__}"
        return None, [*findings, document.finding((), f"{what}; {expected}")]
    result = validate(ModelConfig, document, document.data)
    if isinstance(result, list):
        return None, findings + result
    return LoadedModel(result, document), findings


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
