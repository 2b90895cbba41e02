"""Reads facts about models from a local folder, the mirror, the Hugging Face Hub and the catalog, in this order.

It uses the network only when the caller allows it, with a short timeout and once per model: answers are kept under
`.modelfleet/facts`. Without the Hub, only the facts that no other source has stay unknown.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from modelfleet.infra.catalog import Catalog, default_catalog
from modelfleet.infra.planning.applications import bucket_plan, mirror_plan
from modelfleet.infra.planning.drafting import draft_source
from modelfleet.infra.planning.facts import ModelFacts, catalog_facts, facts_from_config, with_draft
from modelfleet.infra.planning.memory.checkpoint import UnknownShapeError
from modelfleet.infra.planning.mistral_format import config_of
from modelfleet.infra.reading.safetensors import file_header
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.catalogs import architecture_fault
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import LoraAdapter, ModelConfig

if TYPE_CHECKING:
    from modelfleet.infra.reading.mirror import StackMirror

Headers = list[dict[str, Any]]
Found = tuple[Mapping[str, Any], Headers, str]

ADAPTER = "adapter_config.json"
TIMEOUT_S = 2.0
#: How long an answer about a moving revision (a branch, or none) is valid.
KEPT_S = 24 * 3600
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass
class Reader:
    """Reads facts for one stack; `network` allows the mirror and the Hub."""

    root: Path
    stack: LoadedStack | None = None
    network: bool = False
    catalog: Catalog = field(default_factory=default_catalog)
    hub_reachable: bool = True
    bucket_reachable: bool = True
    mirror: StackMirror | None = None
    findings: list[Finding] = field(default_factory=list)

    def read(self, models: Sequence[LoadedModel]) -> dict[str, ModelFacts | None]:
        """Facts by `model_id`; None where nothing is known. Checkpoints that vLLM cannot run become `findings`."""
        known = catalog_facts([model.config for model in models], self.catalog)
        return {
            model.config.model_id: self._with_ranks(model, self._with_draft(model, known[model.config.model_id]))
            for model in models
        }

    def _with_ranks(self, model: LoadedModel, found: ModelFacts | None) -> ModelFacts | None:
        """The facts with the ranks of the model's adapters: of a folder, of an earlier answer, of the Hub."""
        ranks = {one.source: self._rank(one) for one in model.config.engine_config.lora} if found else {}
        known = tuple((source, rank) for source, rank in ranks.items() if rank is not None)
        return dataclasses.replace(found, adapter_ranks=known) if found and known else found

    def _rank(self, adapter: LoraAdapter) -> int | None:
        """`r` of an adapter's own file."""
        folder, revision = Path(adapter.source.removeprefix("file://")), adapter.revision or "main"
        path = folder / ADAPTER
        if folder.is_absolute():
            config = _parsed(path.read_bytes()) if path.is_file() else None
        else:
            kept = self._kept_answer(f"{adapter.source}#adapter", revision)
            config = kept[0] if kept else self._hub_adapter(adapter.source, revision)
        rank = config.get("r") if config else None
        return rank if isinstance(rank, int) and rank > 0 else None

    def _hub_adapter(self, source: str, revision: str) -> Mapping[str, Any] | None:
        from huggingface_hub import constants

        if not self.network or not self.hub_reachable or ":" in source or constants.HF_HUB_OFFLINE:
            return None
        base = constants.ENDPOINT
        config = self._get(f"{base}/{quote(source)}/resolve/{quote(revision, safe='')}/{ADAPTER}")
        if config is not None:
            self._keep(self._keep_path(f"{source}#adapter", revision), (config, [], f"{base}/{source}"))
        return config

    def _with_draft(self, model: LoadedModel, known: ModelFacts | None) -> ModelFacts | None:
        """The model's facts, with those of the checkpoint that drafts for it; `known` is what the catalog has."""
        found, source = self._read(model) or known, draft_source(model.config)
        return with_draft(found, self._draft(*source), self.catalog) if source else found

    def _draft(self, source: str, revision: str) -> Mapping[str, Any] | None:
        """The config.json of a draft: of a folder, of an earlier answer, of the Hub, of the catalog."""
        found = folder_facts(Path(source)) or self._kept_answer(source, revision)
        if found is None and self.network and (answer := self.hub(source, revision)) is not None:
            found = self._keep(self._keep_path(source, revision), answer)
        row = self.catalog.model(source)
        return found[0] if found else row.config if row else None

    def _read(self, model: LoadedModel) -> ModelFacts | None:
        places: list[Callable[[ModelConfig], Found | None]] = [self._local, self._kept]
        places += [self._mirror, self._stack_mirror, self._hub] if self.network else []
        for place in places:
            found = place(model.config)
            if found is None:
                continue
            if fault := _architecture_fault(found[0]):
                engine = model.config.engine_config
                key = "hf_model_id" if engine.hf_model_id else "model_id"
                message = f"found {engine.weights_id!r}, whose config.json ({found[2]}) cannot be served: {fault}"
                self.findings.append(model.document.finding(("engine_config", key), message))
                return None
            try:
                name = model.config.engine_config.weights_id
                return facts_from_config(found[0], found[2], self.catalog, found[1], name=name)
            except UnknownShapeError as problem:
                message = f"{model.config.engine_config.weights_id} ({found[2]}) cannot be planned: {problem}"
                self.findings.append(model.document.finding(("engine_config", "model_id"), message, Severity.NOTICE))
        return None

    def _source(self, model: ModelConfig) -> str:
        weights = model.engine_config.weights_id
        return weights if self.stack is None else self.stack.config.mirror.sources.get(weights, weights)

    def _local(self, model: ModelConfig) -> Found | None:
        """A folder on this machine: an absolute path, or a `file://` source of the stack."""
        return folder_facts(Path(self._source(model).removeprefix("file://")))

    def _kept(self, model: ModelConfig) -> Found | None:
        return self._kept_answer(self._source(model), model.engine_config.revision or "main")

    def _kept_answer(self, source: str, revision: str) -> Found | None:
        path = self._keep_path(source, revision)
        if not path.is_file():
            return None
        moving = not COMMIT.fullmatch(revision)
        if moving and time.time() - path.stat().st_mtime > KEPT_S:
            return None
        kept = _parsed(path.read_bytes())
        return None if kept is None else (kept["config"], kept["headers"], kept["source"])

    def _keep_path(self, source: str, revision: str) -> Path:
        return self.root / ".modelfleet" / "facts" / f"{quote(f'{source}@{revision}', safe='')}.json"

    def _keep_for(self, model: ModelConfig, found: Found) -> Found:
        return self._keep(self._keep_path(self._source(model), model.engine_config.revision or "main"), found)

    def _keep(self, path: Path, found: Found) -> Found:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"config": found[0], "headers": found[1], "source": found[2]}), encoding="utf-8")
        return found

    def _mirror(self, model: ModelConfig) -> Found | None:
        """The model's own S3 mirror."""
        mirror = model.engine_config.s3_mirror_config
        if mirror is None or not mirror.bucket_uri:
            return None
        from modelfleet.infra.reading.mirror import read_prefix

        signed = "--no-sign-request" not in mirror.s3_sync_args
        found = read_prefix(mirror.bucket_uri, signed=signed, timeout_s=TIMEOUT_S)
        return None if found is None else self._keep_for(model, (*found, mirror.bucket_uri))

    def _stack_mirror(self, model: ModelConfig) -> Found | None:
        """The stack's own copy, once a run has filled it. A local stack's copy is in an emulator, filled from here."""
        if self.stack is None or self.stack.config.target.on_this_machine or not self.bucket_reachable:
            return None
        mirror, bucket = mirror_plan(self.stack, model), bucket_plan(self.stack, ())[0].name
        if mirror.prefix is None or bucket is None:
            return None
        from modelfleet.infra.reading.mirror import BucketUnreachable, StackMirror

        try:
            self.mirror = self.mirror or StackMirror(bucket, timeout_s=TIMEOUT_S)
            found = self.mirror.read(mirror.prefix)
        except BucketUnreachable:
            self.bucket_reachable = False
            return None
        return None if found is None else self._keep_for(model, (*found, f"s3://{bucket}/{mirror.prefix}"))

    def _hub(self, model: ModelConfig) -> Found | None:
        """The Hub's answer about a model file's checkpoint, kept for the next time."""
        found = self.hub(self._source(model), model.engine_config.revision or "main")
        return None if found is None else self._keep_for(model, found)

    def hub(self, source: str, revision: str = "main") -> Found | None:
        """The Hub's `config.json`, and the parameter counts that it read from the safetensors headers."""
        if not self.hub_reachable or source.count("/") > 1 or ":" in source:
            return None
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:  # checked before `_get`, which spends 0.15 s on importing an HTTP client
            return None
        revision, base = quote(revision, safe=""), constants.ENDPOINT
        config = self._get(f"{base}/{quote(source)}/resolve/{revision}/config.json")
        if config is None and self.hub_reachable:
            params = self._get(f"{base}/{quote(source)}/resolve/{revision}/params.json")
            config = None if params is None else config_of(params)
        if config is None:
            return None
        info = self._get(f"{base}/api/models/{quote(source)}/revision/{revision}?expand%5B%5D=safetensors") or {}
        counts = (info.get("safetensors") or {}).get("parameters") or {}
        headers = [{dtype: {"dtype": dtype, "shape": [count]} for dtype, count in counts.items()}] if counts else []
        return config, headers, f"{base}/{source}"

    def commit(self, source: str, revision: str) -> str | None:
        """The commit that a branch or tag of the Hub names now; None where the Hub does not say."""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE or not self.network:
            return None
        answer = self._get(f"{constants.ENDPOINT}/api/models/{quote(source)}/revision/{quote(revision, safe='')}") or {}
        sha = str(answer.get("sha", ""))
        return sha if COMMIT.fullmatch(sha) else None

    def _get(self, url: str) -> Mapping[str, Any] | None:
        """Sends the token of `hf auth login` or of the environment.

        huggingface_hub's session drops the token when the Hub, or a proxy in its place, redirects to another host. Its
        `build_hf_headers` is not used, because it would first request a list of coding agents from the Hub.
        """
        from httpx2 import HTTPError, InvalidURL
        from huggingface_hub import get_session, get_token

        try:
            headers = {"Authorization": f"Bearer {token}"} if (token := get_token()) else {}
            answer = get_session().get(url, headers=headers, timeout=TIMEOUT_S)
        except (HTTPError, InvalidURL, OSError):
            self.hub_reachable = False
            return None
        return _parsed(answer.content) if answer.is_success else None  # absent or gated: unknown, which a notice says


def has_token() -> bool:
    """Whether this machine has a token for the Hub: of `hf auth login`, or in HF_TOKEN."""
    from huggingface_hub import constants  # its `get_token` loads an HTTP client: half a second

    named = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    return named or Path(constants.HF_TOKEN_PATH).is_file()


def folder_facts(folder: Path) -> Found | None:
    """The `config.json` (or `params.json`) and the safetensors headers of a folder; None without either.

    A folder may have its weights in both layouts; then those of Hugging Face's count.
    """
    own = folder / "config.json"
    if not folder.is_absolute() or not (own.is_file() or (folder / "params.json").is_file()):
        return None
    found = sorted(folder.glob("*.safetensors"))
    files = [path for path in found if not path.name.startswith("consolidated")] or found
    headers = [header for path in files if (header := file_header(path)) is not None]
    config = _parsed(own.read_bytes()) if own.is_file() else _of_params((folder / "params.json").read_bytes())
    return None if config is None else (config, headers, str(folder))


def _of_params(data: bytes) -> Mapping[str, Any] | None:
    params = _parsed(data)
    return None if params is None else config_of(params)


def _parsed(data: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _architecture_fault(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        return None
    return architecture_fault(names[0])


def read_facts(
    models: Sequence[LoadedModel],
    root: Path,
    stack: LoadedStack | None = None,
    *,
    network: bool = False,
    catalog: Catalog | None = None,
) -> tuple[dict[str, ModelFacts | None], list[Finding]]:
    """Facts of all models by `model_id`, and an error for each checkpoint whose architecture vLLM cannot run."""
    reader = Reader(root, stack, network, catalog or default_catalog())
    return reader.read(models), reader.findings
