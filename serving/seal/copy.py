"""Writes a seal, and takes a verified copy of one. Replicas only take: what they compile stays on their node."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.open import open_store
from modelfleet.serving.mirror.store import SCHEMES, Location, S3Store, Store, parse_uri, plain_errors
from modelfleet.serving.seal.machine import Machine, foreign
from modelfleet.serving.seal.manifest import (
    MANIFEST,
    MAX_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    SealManifest,
    parse_seal,
)
from modelfleet.serving.seal.places import SEALED

Report = Callable[[str], None]
#: What a compiler that was killed, or that waits for another, leaves.
_NOT_SEALED = (".lock", ".tmp")


def write(
    root: Path,
    uri: str,
    *,
    key: str,
    model_id: str,
    machine: Machine,
    report: Report = lambda line: None,
    s3: Any = None,
) -> SealManifest:
    """Sends the compile cache below `root` to `uri`; the manifest comes last, so a half-written seal counts as none.

    Raises `MirrorError` when nothing was compiled, when it is too large, or when S3 refuses.
    """
    location = parse_uri(uri)
    with tempfile.TemporaryFile() as archive, plain_errors(f"write the seal {uri}"):
        files = _pack(root, archive)
        size = archive.tell()
        if not files or size > MAX_BYTES or files > MAX_FILES:
            raise MirrorError(f"{root} has {files} compiled files, {size / 1e6:.0f} MB, which is no seal")
        archive.seek(0)
        digest = hashlib.file_digest(archive, "sha256")
        manifest = SealManifest(
            key=key, model_id=model_id, machine=machine, sha256=digest.hexdigest(), size=size, files=files
        )
        bucket = S3Store(location.bucket, s3)
        archive.seek(0)
        checksum = base64.b64encode(digest.digest()).decode()
        bucket.s3.put_object(
            Bucket=location.bucket, Key=location.key(manifest.archive), Body=archive, ChecksumSHA256=checksum
        )
        bucket.s3.put_object(
            Bucket=location.bucket,
            Key=location.key(MANIFEST),
            Body=manifest.to_json(),
            ContentType="application/json",
            ChecksumAlgorithm="SHA256",
        )
    report(f"{uri} has a compile cache of {files} files, {size / 1e6:.0f} MB")
    return manifest


def is_sealed(uri: str, machine: Machine | None = None, *, s3: Any = None) -> bool:
    """Whether a whole seal with this key is there, by its manifest and the archive's size; its bytes are not read.

    With a `machine` it is also one for that, so a Job has nothing to do. Raises `MirrorError` when S3 cannot be asked.
    """
    location = parse_uri(uri)
    with plain_errors(f"look at {uri}"):
        store = S3Store(location.bucket, s3)
        try:
            manifest = _read(store, location)
        except MirrorError:
            return False  # it is written again
        if manifest is None or manifest.key != Path(location.prefix).name:
            return False
        if machine is not None and foreign(manifest.machine, machine):
            return False
        archive = location.key(manifest.archive)
        stored = store.list(archive).get(archive)
        return stored is not None and stored.size == manifest.size


def take(uri: str, root: Path, machine: Machine, report: Report = lambda line: None, *, s3: Any = None) -> bool:
    """Copies the seal at `uri` to `root`, unless that is there already; says whether `root` has it.

    Nothing that is wrong with a seal fails a replica: it is reported, and vLLM compiles. A folder that is there was
    filled by this seal or by an earlier replica of the same key on this node, and stays as it is.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{root}.lock"):
            if root.is_dir():
                report(f"compiled code for this model is on this node already: {root}")
                return True
            return _take(parse_uri(uri, *SCHEMES), root, machine, report, s3)
    except (MirrorError, OSError, tarfile.TarError) as error:
        report(f"no sealed compile cache, so vLLM compiles: {error}")
        return False


def _take(location: Location, root: Path, machine: Machine, report: Report, s3: Any) -> bool:
    with plain_errors(f"read the seal {location}"):
        store = S3Store(location.bucket, s3) if s3 else open_store(location)
        manifest = _read(store, location)
        if manifest is None:
            raise MirrorError(f"{location} has none yet")
        if manifest.key != Path(location.prefix).name:
            raise MirrorError(f"{location} has one for {manifest.key!r}, which is another model, image or card")
        if reason := foreign(manifest.machine, machine):
            raise MirrorError(f"{location} is from another machine: {reason}")
        with tempfile.TemporaryDirectory(prefix=f"{root.name}.", dir=root.parent) as scratch:
            folder = Path(scratch) / "cache"
            with tempfile.TemporaryFile(dir=root.parent) as archive:
                _download(store, location, manifest, archive)
                _unpack(archive, folder, manifest)
            folder.rename(root)
    report(f"compiled code from {location}: {manifest.files} files, {manifest.size / 1e6:.0f} MB")
    return True


def _read(store: Store, location: Location) -> SealManifest | None:
    data = store.read(location.key(MANIFEST), MAX_MANIFEST_BYTES)
    return None if data is None else parse_seal(data, str(location))


def _download(store: Store, location: Location, manifest: SealManifest, archive: IO[bytes]) -> None:
    """The archive with the manifest's SHA-256; not a byte of it is unpacked before all are proved."""
    name = location.key(manifest.archive)
    if name not in store.list(name):
        raise MirrorError(f"{location} lacks its archive, so it is not whole")
    digest, size = hashlib.sha256(), 0
    for piece in store.stream(name, 0, manifest.size):
        digest.update(piece)
        size += len(piece)
        archive.write(piece)
    if (size, digest.hexdigest()) != (manifest.size, manifest.sha256):
        raise MirrorError(f"{location}: its archive has other bytes than its manifest says; delete the seal")


def _pack(root: Path, archive: IO[bytes]) -> int:
    """Files of the compile caches into a tar, in order; returns how many.

    Times stay, because ninja, with which FlashInfer compiles, goes by them. Owners do not.
    """
    files = 0
    # A file that has two names would be a link in the archive, and a link is refused.
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT, dereference=True) as tar:
        for path in sorted(one for folder in SEALED for one in (root / folder).rglob("*")):
            if path.is_symlink() or not path.is_file() or path.name.endswith(_NOT_SEALED):
                continue
            entry = tar.gettarinfo(path, path.relative_to(root).as_posix())
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            with path.open("rb") as body:
                tar.addfile(entry, body)
            files += 1
    archive.seek(0, os.SEEK_END)
    return files


def _unpack(archive: IO[bytes], folder: Path, manifest: SealManifest) -> None:
    """Regular files below the known folders, and nothing else; `data` refuses paths that lead out (PEP 706)."""
    archive.seek(0)
    folder.mkdir(mode=0o700)
    files = size = 0
    with tarfile.open(fileobj=archive, mode="r:") as tar:
        for entry in tar:
            files, size = files + 1, size + entry.size
            if (
                not entry.isreg()
                or entry.name.split("/")[0] not in SEALED
                or files > manifest.files
                or size > MAX_BYTES
            ):
                shutil.rmtree(folder)
                raise MirrorError(f"the seal has {entry.name!r}, which is not a file of a compile cache; delete it")
            tar.extract(entry, folder, filter="data")
    if files != manifest.files:
        raise MirrorError(f"the seal has {files} files, its manifest says {manifest.files}; delete it")
