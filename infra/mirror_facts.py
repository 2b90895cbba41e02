"""`config.json` and safetensors headers from an S3 prefix or a stack's mirror, a few KiB of each file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from serving.errors import MirrorError
from serving.mirror.manifest import MANIFEST, MAX_MANIFEST_BYTES, parse_manifest

Prefix = tuple[Mapping[str, Any], list[dict[str, Any]]]

MAX_FILES = 1000


def read_mirror(uri: str, *, timeout_s: float) -> Prefix | None:
    """What `read_prefix` gives of a mirror's present version; None without a manifest."""
    parts = urlsplit(uri)
    try:
        key = f"{parts.path.strip('/')}/{MANIFEST}"
        s3 = _client(signed=True, timeout_s=timeout_s)
        data = s3.get_object(Bucket=parts.netloc, Key=key)["Body"].read(MAX_MANIFEST_BYTES)
        manifest = parse_manifest(data, f"{uri}/{MANIFEST}")
    except (BotoCoreError, ClientError, MirrorError):
        return None
    return read_prefix(f"{uri}/{manifest.version}", signed=True, timeout_s=timeout_s)


def read_prefix(uri: str, *, signed: bool, timeout_s: float) -> Prefix | None:
    """The parsed `config.json` and the headers below `s3://bucket/prefix`; None when they cannot be read."""
    from infra.model_facts import parse_header

    parts = urlsplit(uri)
    prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
    try:
        s3 = _client(signed=signed, timeout_s=timeout_s)
        parsed = json.loads(s3.get_object(Bucket=parts.netloc, Key=f"{prefix}config.json")["Body"].read())
        listed = s3.list_objects_v2(Bucket=parts.netloc, Prefix=prefix, MaxKeys=MAX_FILES).get("Contents", [])
        headers = []
        for key in sorted(item["Key"] for item in listed if item["Key"].endswith(".safetensors")):
            body = s3.get_object(Bucket=parts.netloc, Key=key)["Body"]
            header = parse_header(body.read(8), body.read)
            body.close()
            headers += [header] if header else []
    except (BotoCoreError, ClientError, ValueError):
        return None
    return (parsed, headers) if isinstance(parsed, dict) else None


def _client(*, signed: bool, timeout_s: float) -> Any:
    config = Config(
        connect_timeout=timeout_s,
        read_timeout=timeout_s,
        retries={"total_max_attempts": 1},
        signature_version=None if signed else UNSIGNED,
    )
    return boto3.client("s3", config=config)
