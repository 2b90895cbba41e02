"""Files that other tools put into a bucket: a model file's own `s3_mirror_config` and its siblings.

A prefix with our manifest is verified by it. Of any other prefix we take every object as it is: each must stay
unchanged while it is read and have its listed size. There is nothing to check the bytes against.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.cache import use
from modelfleet.serving.mirror.download import Download, Report, Wanted
from modelfleet.serving.mirror.manifest import MAX_FILES
from modelfleet.serving.mirror.node import fetch_manifest, node_name, once, partial_of
from modelfleet.serving.mirror.open import open_store
from modelfleet.serving.mirror.read import read_manifest
from modelfleet.serving.mirror.store import SCHEMES, Location, Store, StoredObject, parse_uri, plain_errors


def fetch_prefix(
    uri: str, cache: Path, *, limit: int | None = None, report: Report = lambda line: None, **options: Any
) -> Path:
    """The folder on this node with everything below `uri`; `options` are the S3 client's (`signed`, `credentials`).

    `limit` is that of `fetch`.

    Raises `MirrorError` when nothing is there or it cannot be read, `WeightsError` when the disk is too small.
    """
    location = parse_uri(uri, *SCHEMES)
    with plain_errors(f"fetch {uri}"):
        store = open_store(location, **options)
        manifest = read_manifest(store, location)
        if manifest is not None:
            return fetch_manifest(store, location, manifest, cache, report, limit)
        wanted = below(store, location)
        listing = "\n".join(f"{file.path}\0{file.size}\0{file.tag}" for file in wanted)
        version = hashlib.sha256(listing.encode()).hexdigest()[:16]
        final = cache / node_name(location, version)
        if use(final):
            return final
        return once(final, Download(store, uri, wanted, partial_of(final), report), limit)


def fetch_extra_file(uri: str, destination: Path, *, report: Report = lambda line: None, **options: Any) -> None:
    """Fetch one of RayLLM's `extra_files`, an object or everything below a prefix, to its own place on the node."""
    location = parse_uri(uri, *SCHEMES)
    with plain_errors(f"fetch {uri}"):
        store = open_store(location, **options)
        exact = store.list(location.prefix).get(location.prefix)
        if exact is not None:
            target = destination / PurePosixPath(location.prefix).name if destination.is_dir() else destination
            wanted = [Wanted(target.name, location.prefix, exact.size, exact.tag, None)]
            folder = target.parent
        else:
            wanted, folder = below(store, location), destination
        partial = folder / f".{folder.name}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}.partial"
        folder.mkdir(parents=True, exist_ok=True)
        Download(store, uri, wanted, partial, report).run()
        for file in wanted:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            (partial / file.path).replace(folder / file.path)
        shutil.rmtree(partial)


def below(store: Store, location: Location) -> list[Wanted]:
    """Every object below a location, without those that only represent folders; raises `MirrorError` for none."""
    folder = location.key("")
    found = {key.removeprefix(folder): stored for key, stored in store.list(folder).items() if not key.endswith("/")}
    if not found or len(found) > MAX_FILES:
        raise MirrorError(
            f"{location} has {len(found)} objects (allowed: 1 to {MAX_FILES}); correct bucket_uri, or fill it"
        )
    return [_wanted(location, path, stored) for path, stored in sorted(found.items())]


def _wanted(location: Location, path: str, stored: StoredObject) -> Wanted:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != path or not path.isprintable():
        raise MirrorError(f"{location} has an object named {path!r}, which is not a file name; delete it")
    return Wanted(path, location.key(path), stored.size, stored.tag, None)
