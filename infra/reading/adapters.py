"""The LoRA adapters below an S3 prefix that a model file names: one for each folder there, when the plan is made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from modelfleet.infra.reading.models import ADAPTER
from modelfleet.serving.config.engine_schema import ALL_BELOW, LoraAdapter
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.errors import MirrorError

TIMEOUT_S = 10.0
#: A folder's name as the last part of an adapter's.
FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def with_listed_adapters(models: Sequence[LoadedModel]) -> tuple[tuple[LoadedModel, ...], list[Finding]]:
    """The models with the adapters that are in their prefixes now, sorted by name, in place of each `/*`.

    A prefix that cannot be read is an error, also without `network`: a plan without its adapters would take those away
    that are served. One without any adapter is a notice.
    """
    findings: list[Finding] = []
    return tuple(_listed(model, findings) for model in models), findings


def _listed(model: LoadedModel, findings: list[Finding]) -> LoadedModel:
    engine = model.config.engine_config
    if not any(adapter.is_prefix for adapter in engine.lora):
        return model
    lora: list[LoraAdapter] = []
    for index, adapter in enumerate(engine.lora):
        if not adapter.is_prefix:
            lora.append(adapter)
            continue
        path = ("engine_config", "lora", index, "source")
        try:
            names = _folders(adapter.source.removesuffix("*"))
            found = [_below(adapter, name) for name in names]
        except (MirrorError, ValueError) as error:
            findings.append(model.document.finding(path, str(error)))
            continue
        if not found:
            message = f"{adapter.source} has no folder with {ADAPTER}, so no adapter of it is served"
            findings.append(model.document.finding(path, message, Severity.NOTICE))
        lora += found
    engine = engine.model_copy(update={"lora": lora})
    return replace(model, config=model.config.model_copy(update={"engine_config": engine}))


def _folders(prefix: str) -> list[str]:
    """Names of the folders directly below `s3://bucket/prefix/` that are adapters; raises `MirrorError`."""
    from modelfleet.serving.mirror.store import S3Store, client, parse_uri, plain_errors

    location = parse_uri(prefix)
    with plain_errors(f"list the adapters in {prefix}"):
        once = {"total_max_attempts": 2}
        store = S3Store(location.bucket, client(connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, retries=once))
        below = location.key("")
        keys = (key.removeprefix(below).split("/") for key in store.list(below))
        return sorted(parts[0] for parts in keys if len(parts) == 2 and parts[1] == ADAPTER)


def _below(all_of: LoraAdapter, folder: str) -> LoraAdapter:
    """One folder's adapter; raises `ValueError` for a name that no client could ask for, such as `..` or `*`."""
    if not FOLDER.fullmatch(folder):
        words = "letters, digits, `.`, `_`, `-`, beginning with a letter or digit"
        raise ValueError(f"found the folder {folder!r} in {all_of.source}; rename it: {words}")
    name, source = (text.removesuffix(ALL_BELOW) + f"/{folder}" for text in (all_of.name, all_of.source))
    return LoraAdapter(name=name, source=source)
