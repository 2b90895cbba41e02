"""Seals the caches that an earlier step filled, and has a replica take them: through S3's API, as in a cluster.

The store is `tools/bench/file_server.py`, a stand-in for S3 on this machine; writing, verifying and copying are the
product's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3

from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.seal import Machine, write
from tools.bench import file_server

BUCKET = "seals"
KEY, REGION = "bench", "us-east-1"


@dataclass(frozen=True)
class Seal:
    """Where a seal is, and what a replica has in its environment to read it and to put its caches in their place."""

    uri: str
    environment: Mapping[str, str]


@contextmanager
def sealed(root: Path, store: Path, port: int, model_id: str, machine: Machine) -> Iterator[Seal]:
    """The seal of `root`, while its store answers.

    Meanwhile `root` is away, so the replica finds its caches in the seal alone. It is the folder into which it copies
    them: compiled files name others by their path. Afterwards `root` is as it was, after a run that was killed too.

    Raises `SetupError` where no step filled it, `MirrorError` where nothing in it was compiled.
    """
    away = root.with_name(f"{root.name}.filled")
    _back(away, root)
    if not root.is_dir():
        raise SetupError(f"{root} is not there; the step with filled caches makes it, so begin with a new --out")
    uri = f"s3://{BUCKET}/{root.name}"
    with file_server.running(store, port) as endpoint:
        s3 = boto3.client(
            "s3", endpoint_url=endpoint, region_name=REGION, aws_access_key_id=KEY, aws_secret_access_key=KEY
        )
        write(root, uri, key=root.name, model_id=model_id, machine=machine, s3=s3)
        root.rename(away)
        try:
            yield Seal(uri, _environment(endpoint, root))
        finally:
            _back(away, root)


def _back(away: Path, root: Path) -> None:
    """Puts the filled caches in the place of what a replica copied."""
    if away.is_dir():
        shutil.rmtree(root, ignore_errors=True)
        away.rename(root)


def _environment(endpoint: str, root: Path) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY,
        "VLLM_CACHE_ROOT": str(root.parent),
    }
