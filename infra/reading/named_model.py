"""A model by its name, outside any model file: a folder, a config.json, an id of the catalog, or an id of the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelfleet.infra.catalog import Catalog, CatalogModel
from modelfleet.infra.planning.facts import ModelFacts, facts_from_config
from modelfleet.infra.planning.memory.checkpoint import Checkpoint, UnknownShapeError
from modelfleet.infra.planning.memory.drafts import as_vllm_reads
from modelfleet.infra.reading.models import Reader, folder_facts
from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.config.validation import near


@dataclass(frozen=True)
class NamedModel:
    """What was found: facts, the catalog's row where there is one, and where the weights' size comes from."""

    name: str
    facts: ModelFacts
    row: CatalogModel | None
    weights_source: str


def named_model(name: str, catalog: Catalog, *, network: bool = True) -> NamedModel:
    """The model of that name. Raises `SetupError` when nobody knows it, or its config does not say enough."""
    row = catalog.model(name)
    found = _local(Path(name)) if Path(name).exists() else None
    try:
        if found is not None:
            return _named(name, facts_from_config(found[0], found[2], catalog, found[1], name=name), row)
        if row is not None and row.config is not None:
            facts = facts_from_config(row.config, f"catalog: {row.shape_source}", catalog, name=row.hf_id)
            return _named(row.hf_id, facts, row)
        answer = Reader(Path.cwd(), network=network, catalog=catalog).hub(name) if network else None
        if answer is not None:
            return _named(name, facts_from_config(answer[0], answer[2], catalog, answer[1], name=name), row)
    except UnknownShapeError as problem:
        raise SetupError(f"{name}: {problem}") from problem
    raise SetupError(_unknown(name, row, catalog))


def named_draft(name: str, catalog: Catalog, *, network: bool = True) -> Checkpoint:
    """The config of a draft of that name, found as a model's is. Raises `SetupError` when nobody knows it."""
    row = catalog.model(name)
    found = _local(Path(name)) if Path(name).exists() else None
    config: Mapping[str, object] | None = found[0] if found else row.config if row else None
    if config is None and network and (answer := Reader(Path.cwd(), network=True, catalog=catalog).hub(name)):
        config = answer[0]
    if config is None:
        raise SetupError(_unknown(name, row, catalog))
    return Checkpoint(as_vllm_reads(config), catalog.architecture_defaults)


def _local(path: Path) -> tuple[dict[str, object], list[dict[str, object]], str] | None:
    """A folder, or a config.json by its own path."""
    if path.is_dir():
        found = folder_facts(path.resolve())
        return None if found is None else (dict(found[0]), found[1], found[2])
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as problem:
        raise SetupError(f"{path} is no JSON file: {problem}") from problem
    if not isinstance(config, dict):
        raise SetupError(f"{path} holds no JSON object; give a model's config.json")
    return config, [], str(path)


def _named(name: str, facts: ModelFacts, row: CatalogModel | None) -> NamedModel:
    source = "config.json, counted as vLLM 0.32.0 creates it"
    if facts.header_ratio != 1.0:
        source = "the checkpoint's safetensors headers, which hold less than its config says"
    return NamedModel(name, facts, row, source)


def _unknown(name: str, row: CatalogModel | None, catalog: Catalog) -> str:
    what = "the catalog knows it but not its shape" if row is not None else "the catalog does not know it"
    close = near(name, list(catalog.models)) if row is None else ""
    hint = f" ({close})" if close else ""
    return (
        f"{name}: {what}{hint}, it is no file here, and the Hub did not answer or keeps it behind a licence. "
        "Give its config.json or a folder with one: `modelfleet models show PATH/config.json`"
    )
