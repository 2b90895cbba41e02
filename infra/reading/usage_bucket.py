"""Brings a stack's records of usage from its bucket to a folder as a replica has it (`serving/usage_bucket.py`)."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from modelfleet.infra.names import USAGE
from modelfleet.infra.reading.aws_errors import plain_setup_errors
from modelfleet.serving.config.errors import Finding
from modelfleet.serving.node_hours import NODES

#: Objects that are fetched at a time: one takes some 20 ms, nearly all of it waiting.
PARALLEL = 16
SUFFIX = ".jsonl.gz"


def fetch_usage(
    bucket: str,
    prefix: str,
    since: datetime,
    folder: Path,
    faults: list[Finding],
    *,
    region: str | None = None,
    profile: str | None = None,
    s3: Any = None,
) -> Mapping[str, str]:
    """Write the records of the hours from `since` on below `folder`; `prefix` is the plan's (`BucketPlan.usage`).

    Returns the object of each file, by the file's path. An object that cannot be unpacked is one more of `faults`, and
    its file has what could be. Raises `SetupError` where the bucket cannot be read.
    """
    fix = f"allow s3:ListBucket of it and s3:GetObject of {USAGE}/*, and kms:Decrypt with its key"
    with plain_setup_errors(f"s3://{bucket}/{prefix}", fix):
        return _fetched(s3 or _client(region, profile), bucket, prefix, since, folder, faults)


def _client(region: str | None, profile: str | None) -> Any:
    import boto3
    from botocore.config import Config

    session = boto3.Session(profile_name=profile, region_name=region)
    return session.client("s3", config=Config(max_pool_connections=PARALLEL))


def _fetched(
    s3: Any, bucket: str, prefix: str, since: datetime, folder: Path, faults: list[Finding]
) -> Mapping[str, str]:
    rest = prefix.removeprefix(USAGE)
    keys = [key for start in (prefix, f"{USAGE}/nodes{rest}") for key in _keys(s3, bucket, start, since)]
    names = {}
    for key in keys:
        path = folder / _file_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        names[str(path)] = f"s3://{bucket}/{key}"

    def fetch(key: str) -> Finding | None:
        body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        text, whole = _unpacked(body)
        (folder / _file_of(key)).write_bytes(text)
        message = "cannot be unpacked to its end; what follows is not counted"
        return None if whole else Finding(f"s3://{bucket}/{key}", 0, "", message)

    with ThreadPoolExecutor(PARALLEL) as pool:
        faults += [fault for fault in pool.map(fetch, keys) if fault is not None]
    return names


def _keys(s3: Any, bucket: str, prefix: str, since: datetime) -> Iterator[str]:
    """Objects of the hours from `since` on: their names sort by time."""
    after = f"{prefix}/dt={since:%Y-%m-%d}/hour={since:%H}/"
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/", StartAfter=after)
    for page in pages:
        for entry in page.get("Contents", ()):
            parts = PurePosixPath(entry["Key"]).parts
            if entry["Key"].endswith(SUFFIX) and [part.partition("=")[0] for part in parts[-3:-1]] == ["dt", "hour"]:
                yield entry["Key"]


def _file_of(key: str) -> Path:
    """`<model>/date=…/hour=…/<replica>.jsonl` of an object; no part of it leads out of the folder."""
    *folders, day, hour, name = PurePosixPath(key).parts
    model = NODES if folders[1:2] == ["nodes"] else "usage"
    return Path(model, f"date={day.removeprefix('dt=')}", hour, name.removesuffix(".gz"))


def _unpacked(body: bytes) -> tuple[bytes, bool]:
    try:
        return gzip.decompress(body), True
    except (OSError, EOFError, zlib.error):
        reader = zlib.decompressobj(wbits=31)
        try:
            return reader.decompress(body), False
        except zlib.error:
            return b"", False
