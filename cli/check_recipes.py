"""What `modelfleet check` says of a model's recipe, and the lines that `--fix --recipes` adds."""

from __future__ import annotations

from pathlib import Path

from modelfleet.infra.catalog.recipes import Recipe, recipe_of
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.recipe_findings import case_of, missing_lines, recipe_findings
from modelfleet.serving.config.document import Document, dotted, read_document
from modelfleet.serving.config.errors import Finding, InputErrors, Severity
from modelfleet.serving.config.load import LoadedModel, load_model
from modelfleet.serving.config.rayllm.fix import add_to_file
from modelfleet.serving.config.rayllm.legacy import normalise
from modelfleet.serving.config.rayllm.yaml_text import one_line


def findings_of(path: Path, model: LoadedModel | None) -> tuple[list[Finding], bool]:
    """What the recipe says of a file, also of one with other faults, and whether `--fix --recipes` would add lines."""
    document = _document(path)
    if document is None:
        return [], False
    recipe = _recipe(document, model)
    return recipe_findings(document, recipe), bool(missing_lines(recipe, document))


def add_lacking(path: Path) -> list[Finding]:
    """Add the lines that the file lacks; returns a notice for each. Raises `InputErrors` when they cannot be added."""
    document = _document(path)
    if document is None:
        return []
    lines = missing_lines(_recipe(document, load_model(path)[0]), document)
    if lines:
        add_to_file(path, lines)
    return [
        Finding(document.file, 0, dotted(key), f"added: `{key[-1]}: {one_line(value)}`", Severity.NOTICE)
        for key, value in lines.items()
    ]


def _document(path: Path) -> Document | None:
    """The file under today's names; None where it is no model file at all, which `load_model` says."""
    try:
        document = read_document(path)
    except InputErrors:
        return None
    return normalise(document).result() if isinstance(document.data, dict) else None


def _recipe(document: Document, model: LoadedModel | None) -> Recipe | None:
    """By the Hub id, else by the `model_type` that this machine knows: from a folder, kept answers, the catalog."""
    hf_id = case_of(document.data).hf_id
    if (recipe := recipe_of(hf_id)) is not None or model is None:
        return recipe
    from modelfleet.infra.reading.models import read_facts

    facts: ModelFacts | None = read_facts([model], Path.cwd())[0].get(model.config.model_id)
    return None if facts is None else recipe_of(hf_id, facts.architecture)
