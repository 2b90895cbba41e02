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


class BucketUnreachable(Exception):
    """The bucket cannot be asked, for this object and any other: no network, no credentials, or it is not there."""


class StackMirror:
    """The copies in a stack's bucket, through one client for all of its models."""

    def __init__(self, bucket: str, *, timeout_s: float) -> None:
        self._bucket, self._s3 = bucket, _client(signed=True, timeout_s=timeout_s)

    def read(self, prefix: str) -> Prefix | None:
        """`config.json` and headers of the version that the manifest below `prefix` names; None without a manifest.

        Raises `BucketUnreachable`, after which no other model need be tried.
        """
        key = f"{prefix}/{MANIFEST}"
        try:
            data = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read(MAX_MANIFEST_BYTES)
            return _read(self._s3, self._bucket, f"{prefix}/{parse_manifest(data, key).version}/")
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
    parts = urlsplit(uri)
    prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
    try:
        return _read(_client(signed=signed, timeout_s=timeout_s), parts.netloc, prefix)
    except (BotoCoreError, ClientError, ValueError):
        return None


def _read(s3: Any, bucket: str, prefix: str) -> Prefix | None:
    from infra.model_facts import parse_header

    parsed = json.loads(s3.get_object(Bucket=bucket, Key=f"{prefix}config.json")["Body"].read())
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=MAX_FILES).get("Contents", [])
    headers = []
    for key in sorted(item["Key"] for item in listed if item["Key"].endswith(".safetensors")):
        body = s3.get_object(Bucket=bucket, Key=key)["Body"]
        header = parse_header(body.read(8), body.read)
        body.close()
        headers += [header] if header else []
    return (parsed, headers) if isinstance(parsed, dict) else None


def _client(*, signed: bool, timeout_s: float) -> Any:
    config = Config(
        connect_timeout=timeout_s,
        read_timeout=timeout_s,
        retries={"total_max_attempts": 1},
        signature_version=None if signed else UNSIGNED,
    )
    return boto3.client("s3", config=config)
