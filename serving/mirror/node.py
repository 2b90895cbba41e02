"""Fetching a mirror to this node: verified parallel ranged reads, resumable, once per node, in bounded memory.

<cache>/<bucket>--<prefix>-<version>/           appears in one rename, once every byte is verified
<cache>/<bucket>--<prefix>-<version>.partial/   what has arrived so far; a killed fetch resumes from it

A copy that was fetched stays while this process lives; `cache.py` removes others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock

from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.cache import PARTIAL, finish, room, use
from modelfleet.serving.mirror.download import Download, Report, Wanted
from modelfleet.serving.mirror.manifest import Manifest
from modelfleet.serving.mirror.open import open_store
from modelfleet.serving.mirror.read import missing_files, read_manifest
from modelfleet.serving.mirror.store import SCHEMES, Location, S3Store, Store, parse_uri, plain_errors


def fetch(
    uri: str, cache: Path, *, limit: int | None = None, report: Report = lambda line: None, s3: Any = None
) -> Path:
    """The folder with the verified copy of the mirror at `uri`, made in `cache` if it is not there yet.

    `limit`: bytes that all copies in `cache` may take; those that nobody uses are removed first.

    Raises `MirrorError` when the mirror is absent, damaged or unreachable, `WeightsError` when the disk is too small.
    """
    location = parse_uri(uri, *SCHEMES)
    with plain_errors(f"fetch {uri}"):
        store = S3Store(location.bucket, s3) if s3 else open_store(location)
        manifest = read_manifest(store, location)
        if manifest is None:
            raise MirrorError(f"{uri} has no manifest, so it is not complete; fill it (`pulumi up` does)")
        return fetch_manifest(store, location, manifest, cache, report, limit)


def complete_version(uri: str) -> str | None:
    """The prefix below `uri` with all files that its manifest names; None when there is no manifest.

    Raises `MirrorError` when files are missing or S3 cannot be queried.
    """
    location = parse_uri(uri)
    with plain_errors(f"look at {uri}"):
        store = open_store(location)
        manifest = read_manifest(store, location)
        if manifest is None:
            return None
        _all_there(store, location, manifest)
        return f"s3://{location.bucket}/{location.key(manifest.version)}"


def fetch_manifest(
    store: Store, location: Location, manifest: Manifest, cache: Path, report: Report, limit: int | None = None
) -> Path:
    """Like `fetch`, with a manifest that has already been read."""
    final = cache / node_name(location, manifest.version)
    if use(final):
        return final
    _all_there(store, location, manifest)
    folder = location.key(manifest.version, "")
    wanted = [Wanted(file.path, folder + file.path, file.size, None, file.chunks) for file in manifest.files]
    return once(final, Download(store, str(location), wanted, partial_of(final), report, manifest.chunk_bytes), limit)


def _all_there(store: Store, location: Location, manifest: Manifest) -> None:
    if missing := missing_files(store, location, manifest):
        raise MirrorError(
            f"{location} lacks {len(missing)} of its files, first {missing[0]!r}; fill it again (`pulumi up` does)"
        )


def node_name(location: Location, version: str) -> str:
    """Name of the folder on the node."""
    return f"{location.bucket}--{location.prefix.replace('/', '--')}-{version}"


def partial_of(final: Path) -> Path:
    """Where a download puts what will be `final`."""
    return final.with_name(final.name + PARTIAL)


def once(final: Path, download: Download, limit: int | None) -> Path:
    """`final`, made by `download` next to it and renamed once complete; one process per node at a time."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{final}.lock"):
        if not use(final):
            download.run(room(final, download.total_bytes, limit, download.report))
            finish(download.folder, final)
    return final
