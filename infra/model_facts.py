"""Reading facts about models: local folder, mirror, Hugging Face Hub, catalog, in this order; else unknown.

The network is asked only when the caller allows it, with a short timeout, once per model: answers are kept under
`.modelfleet/facts`. Somebody who cannot reach the Hub loses nothing but what only the Hub knows.
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from infra.catalog import Catalog, default_catalog
from infra.planning.applications import bucket_plan, mirror_plan
from infra.planning.facts import ModelFacts, catalog_facts, facts_from_config
from infra.stack import LoadedStack
from serving.config.catalogs import architecture_fault
from serving.config.errors import Finding
from serving.config.load import LoadedModel
from serving.config.schema import ModelConfig

if TYPE_CHECKING:
    from infra.mirror_facts import StackMirror

Headers = list[dict[str, Any]]
Found = tuple[Mapping[str, Any], Headers, str]

TIMEOUT_S = 2.0
#: How long an answer about a moving revision (a branch, or none) counts.
KEPT_S = 24 * 3600
COMMIT = re.compile(r"[0-9a-f]{40}")
#: A safetensors header is a few MiB at most; a larger one is no header.
MAX_HEADER_BYTES = 100 * 1024 * 1024
MAX_CONFIG_BYTES = 4 * 1024 * 1024


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
        return {model.config.model_id: self._read(model) or known[model.config.model_id] for model in models}

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
            if (facts := facts_from_config(found[0], found[2], found[1])) is not None:
                return facts
        return None

    def _source(self, model: ModelConfig) -> str:
        weights = model.engine_config.weights_id
        return weights if self.stack is None else self.stack.config.mirror.sources.get(weights, weights)

    def _local(self, model: ModelConfig) -> Found | None:
        """A folder on this machine: an absolute path, or a `file://` source of the stack."""
        folder = Path(self._source(model).removeprefix("file://"))
        if not folder.is_absolute() or not (folder / "config.json").is_file():
            return None
        config = _parsed((folder / "config.json").read_bytes())
        headers = [header for path in sorted(folder.glob("*.safetensors")) if (header := file_header(path)) is not None]
        return None if config is None else (config, headers, str(folder))

    def _kept(self, model: ModelConfig) -> Found | None:
        path = self._keep_path(model)
        if not path.is_file():
            return None
        moving = not COMMIT.fullmatch(model.engine_config.revision or "")
        if moving and time.time() - path.stat().st_mtime > KEPT_S:
            return None
        kept = _parsed(path.read_bytes())
        return None if kept is None else (kept["config"], kept["headers"], kept["source"])

    def _keep_path(self, model: ModelConfig) -> Path:
        name = f"{self._source(model)}@{model.engine_config.revision or 'main'}"
        return self.root / ".modelfleet" / "facts" / f"{quote(name, safe='')}.json"

    def _keep(self, model: ModelConfig, found: Found) -> Found:
        path = self._keep_path(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"config": found[0], "headers": found[1], "source": found[2]}), encoding="utf-8")
        return found

    def _mirror(self, model: ModelConfig) -> Found | None:
        """The model's own S3 mirror."""
        mirror = model.engine_config.s3_mirror_config
        if mirror is None or not mirror.bucket_uri:
            return None
        from infra.mirror_facts import read_prefix

        signed = "--no-sign-request" not in mirror.s3_sync_args
        found = read_prefix(mirror.bucket_uri, signed=signed, timeout_s=TIMEOUT_S)
        return None if found is None else self._keep(model, (*found, mirror.bucket_uri))

    def _stack_mirror(self, model: ModelConfig) -> Found | None:
        """The stack's own copy, once a run has filled it. A local stack's lies in an emulator, filled from here."""
        if self.stack is None or self.stack.config.target == "local" or not self.bucket_reachable:
            return None
        mirror, bucket = mirror_plan(self.stack, model), bucket_plan(self.stack, ())[0].name
        if mirror.prefix is None or bucket is None:
            return None
        from infra.mirror_facts import BucketUnreachable, StackMirror

        self.mirror = self.mirror or StackMirror(bucket, timeout_s=TIMEOUT_S)
        try:
            found = self.mirror.read(mirror.prefix)
        except BucketUnreachable:
            self.bucket_reachable = False
            return None
        return None if found is None else self._keep(model, (*found, f"s3://{bucket}/{mirror.prefix}"))

    def _hub(self, model: ModelConfig) -> Found | None:
        """The Hub's `config.json`, and the parameter counts that it read from the safetensors headers."""
        source = self._source(model)
        if not self.hub_reachable or os.environ.get("HF_HUB_OFFLINE") == "1" or source.count("/") > 1 or ":" in source:
            return None
        revision = quote(model.engine_config.revision or "main", safe="")
        base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        config = self._get(f"{base}/{quote(source)}/resolve/{revision}/config.json")
        if config is None:
            return None
        info = self._get(f"{base}/api/models/{quote(source)}/revision/{revision}?expand%5B%5D=safetensors") or {}
        counts = (info.get("safetensors") or {}).get("parameters") or {}
        headers = [{dtype: {"dtype": dtype, "shape": [count]} for dtype, count in counts.items()}] if counts else []
        return self._keep(model, (config, headers, f"{base}/{source}"))

    def _get(self, url: str) -> Mapping[str, Any] | None:
        token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                return _parsed(answer.read(MAX_CONFIG_BYTES))
        except urllib.error.HTTPError:
            return None  # absent or gated: then it is unknown, which is said
        except (OSError, ValueError):
            self.hub_reachable = False
            return None


def file_header(path: Path) -> dict[str, Any] | None:
    """The JSON header of a safetensors file; None when it is none."""
    with path.open("rb") as stream:
        return parse_header(stream.read(8), stream.read)


def parse_header(prefix: bytes, read: Callable[[int], bytes]) -> dict[str, Any] | None:
    """A safetensors header from its eight bytes of length and a function that reads what follows them."""
    if len(prefix) < 8:
        return None
    length = struct.unpack("<Q", prefix)[0]
    if not 0 < length <= MAX_HEADER_BYTES:
        return None
    parsed = _parsed(read(length))
    return None if parsed is None else dict(parsed)


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
    models: Sequence[LoadedModel], root: Path, stack: LoadedStack | None = None, *, network: bool = False
) -> tuple[dict[str, ModelFacts | None], list[Finding]]:
    """Facts of all models by `model_id`, and an error for each checkpoint whose architecture vLLM cannot run."""
    reader = Reader(root, stack, network)
    return reader.read(models), reader.findings
