"""Fetching a mirror to this node: verified parallel ranged reads, resumable, once per node, in bounded memory.

<cache>/<bucket>--<prefix>-<version>/           appears in one rename, once every byte is verified
<cache>/<bucket>--<prefix>-<version>.partial/   what has arrived so far; a killed fetch resumes from it

A copy that was fetched stays while this process lives; `cache.py` removes others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.cache import PARTIAL, finish, room, use
from modelfleet.serving.mirror.download import Download, Report, Wanted
from modelfleet.serving.mirror.manifest import Manifest, ManifestFile
from modelfleet.serving.mirror.open import open_store
from modelfleet.serving.mirror.proof import Expected
from modelfleet.serving.mirror.read import missing_files, read_manifest
from modelfleet.serving.mirror.store import READERS, SCHEMES, Location, S3Store, Store, parse_uri, plain_errors

#: Ends the name of a copy whose files have the SHA-256 of a signed manifest.
SIGNED = "-signed"


def fetch(
    uri: str,
    cache: Path,
    *,
    limit: int | None = None,
    report: Report = lambda line: None,
    s3: Any = None,
    expected: Expected | None = None,
) -> Path:
    """The folder with the verified copy of the mirror at `uri`, made in `cache` if it is not there yet.

    `limit`: bytes that all copies in `cache` may take; those that nobody uses are removed first. With `expected` the
    manifest must be so; with its key each file also has the SHA-256 that it names.

    Raises `MirrorError` when the mirror is absent, damaged or unreachable, `WeightsError` when the disk is too small.
    """
    location = parse_uri(uri, *SCHEMES)
    with plain_errors(f"fetch {uri}"):
        store = S3Store(location.bucket, s3) if s3 else open_store(location)
        manifest = read_manifest(store, location, expected)
        if manifest is None:
            raise MirrorError(f"{uri} has no manifest, so it is not complete; fill it (`pulumi up` does)")
        return fetch_manifest(
            store, location, manifest, cache, report, limit, signed=expected is not None and bool(expected.key)
        )


def complete_version(uri: str, expected: Expected | None = None) -> str | None:
    """The prefix below `uri` with all files that its manifest names; None when there is no manifest.

    With `expected` the manifest must be signed so; who streams from there reads bytes that nobody has compared.

    Raises `MirrorError` when files are missing or S3 cannot be queried.
    """
    location = parse_uri(uri)
    with plain_errors(f"look at {uri}"):
        store = open_store(location)
        manifest = read_manifest(store, location, expected)
        if manifest is None:
            return None
        _all_there(store, location, manifest)
        return f"s3://{location.bucket}/{location.key(manifest.version)}"


def fetch_manifest(
    store: Store,
    location: Location,
    manifest: Manifest,
    cache: Path,
    report: Report,
    limit: int | None = None,
    *,
    signed: bool = False,
) -> Path:
    """Like `fetch`, with a manifest that has already been read.

    Where it is `signed`, its SHA-256 are compared too: a CRC finds damage, and who knows it can forge bytes that have
    it. Such a copy has a name of its own.
    """
    final = cache / (node_name(location, manifest.version) + (SIGNED if signed else ""))
    if use(final):
        return final
    _all_there(store, location, manifest)
    folder = location.key(manifest.version, "")
    wanted = [Wanted(file.path, folder + file.path, file.size, None, file.chunks) for file in manifest.files]
    download = Download(store, str(location), wanted, partial_of(final), report, manifest.chunk_bytes)
    check = partial(_compare, location, manifest, report) if signed else None
    return once(final, download, limit, check)


def _compare(location: Location, manifest: Manifest, report: Report, folder: Path) -> None:
    """Raises `MirrorError` for a file without the SHA-256 of the manifest, and removes it from the download."""
    report(f"comparing {manifest.total_bytes / 1e6:.0f} MB with the signed manifest")

    def differs(file: ManifestFile) -> bool:
        with (folder / file.path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256

    with ThreadPoolExecutor(max_workers=READERS) as pool:
        found = list(pool.map(differs, manifest.files))
    forged = [file.path for file, other in zip(manifest.files, found, strict=True) if other]
    for path in forged:
        (folder / path).unlink()
    if forged:
        raise MirrorError(f"{location}: {forged[0]} is not what the signed manifest names; fill the mirror again")


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


def once(final: Path, download: Download, limit: int | None, check: Callable[[Path], None] | None = None) -> Path:
    """`final`, made by `download` next to it and renamed once complete; one process per node at a time.

    `check` raises for a download that must not become a copy.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{final}.lock"):
        if not use(final):
            download.run(room(final, download.total_bytes, limit, download.report))
            if check is not None:
                check(download.folder)
            finish(download.folder, final)
    return final
