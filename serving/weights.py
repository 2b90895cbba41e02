"""Where a replica's weights come from. The first named place counts: if it fails, so does the replica.

    1. hf_model_id is an absolute path       the folder as it is
    2. the model file's own bucket_uri       everything below the prefix, in S3, Google Cloud Storage or Azure
    3. the stack's mirror                    what its manifest says
    4. the Hugging Face Hub                  at engine_config.revision

RayLLM silently fell back to the Hub when it could not read a mirror; here that is an error.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelfleet.serving.config.checkpoint_files import FILES, Kind, weights_kind
from modelfleet.serving.config.schema import ExtraFile, LoraAdapter, ModelConfig, S3AwsCredentials, S3MirrorConfig
from modelfleet.serving.errors import MirrorError, WeightsError
from modelfleet.serving.hub import download
from modelfleet.serving.mirror import complete_version, fetch
from modelfleet.serving.mirror.download import Report
from modelfleet.serving.mirror.prefix import fetch_extra_file, fetch_prefix
from modelfleet.serving.mirror.proof import FIX, Expected
from modelfleet.serving.mirror.store import SCHEMES

UNSIGNED = "--no-sign-request"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
}
CREDENTIALS_TIMEOUT_S = 30


def resolve(model: ModelConfig, weights: Mapping[str, Any], report: Report = lambda line: None) -> str:
    """What vLLM loads: a folder, complete on this node; raises `MirrorError` or `WeightsError`.

    With `engine_kwargs.load_format: runai_streamer` and weights in S3 it is the s3:// prefix instead, which vLLM itself
    streams into memory. We then check that the manifest's files are all there (and its signature), but not their bytes.
    """
    streamed = _streamed(model, weights)
    return str(_folder(model, weights, report)) if streamed is None else streamed


def _streamed(model: ModelConfig, weights: Mapping[str, Any]) -> str | None:
    engine = model.engine_config
    own = engine.s3_mirror_config.bucket_uri if engine.s3_mirror_config else None
    uri = own or weights.get("mirror")
    streaming = str(engine.engine_kwargs.get("load_format", "")).startswith("runai_streamer")
    if not streaming or uri is None or Path(engine.weights_id).is_absolute():
        return None
    expected = None if own else Expected.of(weights)
    complete = complete_version(uri, expected)
    if complete is None and expected is not None:
        raise MirrorError(f"{uri} has no manifest, and what streams from it must have a verified one; {FIX}")
    return complete or uri


def _folder(model: ModelConfig, weights: Mapping[str, Any], report: Report) -> Path:
    engine, cache, limit = model.engine_config, default_cache(), cache_limit(weights)
    kind = weights_kind(engine.engine_kwargs)
    own = engine.mirror_config
    options = _s3_options(own) if isinstance(own, S3MirrorConfig) else {}
    if own is not None:
        _extra_files(own.extra_files, report, **options)
    if Path(engine.weights_id).is_absolute():
        return _model_folder(Path(engine.weights_id), "hf_model_id", kind)
    if own is not None and own.bucket_uri:
        return _model_folder(
            fetch_prefix(own.bucket_uri, cache, limit=limit, report=report, **options),
            f"bucket_uri {own.bucket_uri}",
            kind,
        )
    if mirror := weights.get("mirror"):
        expected = Expected.of(weights)
        return _model_folder(fetch(mirror, cache, limit=limit, report=report, expected=expected), mirror, kind)
    report(f"fetching {engine.weights_id} from the Hugging Face Hub")
    return download(engine.weights_id, engine.revision, kind=kind, report=report)


def cache_limit(weights: Mapping[str, Any]) -> int | None:
    """Bytes that the copies on this node may take together, as the plan says it; None where only the disk limits."""
    gb = weights.get("cache_gb")
    return None if gb is None else int(gb * 1e9)


def resolve_other(weights: Mapping[str, Any], name: str, report: Report = lambda line: None) -> str | None:
    """The folder on this node of the copy that `weights` has under `name`, a draft or a tokenizer; else None."""
    if (uri := weights.get(name)) is None:
        return None
    expected = Expected.of(weights, uri)
    return str(fetch(uri, default_cache(), limit=cache_limit(weights), report=report, expected=expected))


def resolve_adapter(
    adapter: LoraAdapter,
    report: Report = lambda line: None,
    mirror: str | None = None,
    *,
    limit: int | None = None,
    expected: Expected | None = None,
) -> Path:
    """The folder of a LoRA adapter on this node, from the stack's copy where it has one. `limit` is the cache's.

    With `expected` the copy's manifest must be signed so.

    Raises `MirrorError` or `WeightsError`.
    """
    if mirror is not None:
        folder = fetch(mirror, default_cache(), limit=limit, report=report, expected=expected)
    elif Path(adapter.source).is_absolute():
        folder = Path(adapter.source)
    elif adapter.source.partition("://")[0] in SCHEMES:
        folder = fetch_prefix(adapter.source, default_cache(), limit=limit, report=report)
    else:
        report(f"fetching the adapter {adapter.source} from the Hugging Face Hub")
        folder = download(adapter.source, adapter.revision, kind="adapter", report=report)
    if not (folder / "adapter_config.json").is_file():
        raise WeightsError(f"lora {adapter.name}: {adapter.source} has no adapter_config.json; correct its source")
    return folder


def default_cache() -> Path:
    """`${XDG_CACHE_HOME:-~/.cache}/modelfleet/models`, or `MODELFLEET_MODEL_CACHE`: one copy per node."""
    if chosen := os.environ.get("MODELFLEET_MODEL_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "modelfleet" / "models"


def _model_folder(path: Path, what: str, kind: Kind) -> Path:
    needs = FILES[kind].needs or ""
    if not (path / needs).is_file():
        raise WeightsError(f"{what}: {path} has no {needs} on this node, so it is not a model; correct it")
    return path


def _extra_files(files: list[ExtraFile], report: Report, **options: Any) -> None:
    for file in files:
        destination = Path(os.path.expandvars(file.destination_path)).expanduser()
        report(f"fetching {file.bucket_uri} to {destination}")
        fetch_extra_file(file.bucket_uri, destination, report=report, **options)


def _s3_options(config: S3MirrorConfig) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if UNSIGNED in config.s3_sync_args:
        options["signed"] = False
    if config.s3_aws_credentials is not None:
        options["credentials"] = _temporary_credentials(config.s3_aws_credentials)
    return options


class _Straight(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """Never redirect: the other server would get the token, and could return credentials of its own."""


def _temporary_credentials(config: S3AwsCredentials) -> dict[str, str]:
    """Credentials from the endpoint that the model file names. When that failed, RayLLM continued without them."""
    url, variable = config.create_aws_credentials_url, config.auth_token_env_variable
    request = urllib.request.Request(url, method="POST")  # noqa: S310  # the schema allows https:// and this machine
    if variable and (token := os.environ.get(variable)):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(_Straight).open(request, timeout=CREDENTIALS_TIMEOUT_S) as answer:
            data = json.load(answer)
        return {CREDENTIALS[name]: str(value) for name, value in data.items() if name in CREDENTIALS}
    except (urllib.error.URLError, OSError, ValueError, AttributeError) as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise MirrorError(
            f"{url} returned no AWS credentials ({reason}); check it and {variable or 'its token'}"
        ) from None
