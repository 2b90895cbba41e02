"""`config.json` and safetensors headers from an S3 prefix or a stack's mirror, a few KiB of each file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from modelfleet.infra.reading.safetensors import parse_header
from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.read import read_manifest
from modelfleet.serving.mirror.store import Location, S3Store, client, parse_uri

Prefix = tuple[Mapping[str, Any], list[dict[str, Any]]]

MAX_CONFIG_BYTES = 4 * 2**20


class BucketUnreachable(Exception):
    """The bucket cannot be read, for this object or any other: no network, no credentials, or no such bucket."""


class StackMirror:
    """The copies in a stack's bucket, through one client for all of its models.

    Raises `BucketUnreachable` where there can be no client, such as for a profile that does not exist.
    """

    def __init__(self, bucket: str, *, timeout_s: float) -> None:
        try:
            self._store = _store(bucket, signed=True, timeout_s=timeout_s)
        except BotoCoreError as error:
            raise BucketUnreachable from error

    def read(self, prefix: str) -> Prefix | None:
        """`config.json` and headers of the version that the manifest below `prefix` names; None without a manifest.

        Raises `BucketUnreachable`, after which no other model need be tried.
        """
        location = Location(self._store.bucket, prefix)
        try:
            manifest = read_manifest(self._store, location)
            return None if manifest is None else _read(self._store, location.key(manifest.version, ""))
        except BotoCoreError as error:
            raise BucketUnreachable from error
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchBucket":
                raise BucketUnreachable from error
            return None
        except (MirrorError, ValueError):
            return None


def read_prefix(uri: str, *, signed: bool, timeout_s: float) -> Prefix | None:
    """The parsed `config.json` and the headers below `s3://bucket/prefix`; None when they cannot be read."""
    try:
        location = parse_uri(uri)
        return _read(_store(location.bucket, signed=signed, timeout_s=timeout_s), location.key(""))
    except (BotoCoreError, ClientError, MirrorError, ValueError):
        return None


def _read(store: S3Store, folder: str) -> Prefix | None:
    data = store.read(f"{folder}config.json", MAX_CONFIG_BYTES)
    config = None if data is None else json.loads(data)
    names = sorted(key for key, found in store.list(folder).items() if key.endswith(".safetensors") and found.size > 8)
    headers = [header for name in names if (header := _header(store, name)) is not None]
    return (config, headers) if isinstance(config, dict) else None


def _header(store: S3Store, key: str) -> dict[str, Any] | None:
    def read(offset: int, length: int) -> bytes:
        return b"".join(store.stream(key, offset, length))

    return parse_header(read(0, 8), lambda length: read(8, length))


def _store(bucket: str, *, signed: bool, timeout_s: float) -> S3Store:
    """One attempt with a short timeout: these facts are optional, and nobody should wait for them."""
    once = {"total_max_attempts": 1}
    return S3Store(bucket, client(signed=signed, connect_timeout=timeout_s, read_timeout=timeout_s, retries=once))
