"""Fetching a mirror to this node: verified parallel ranged reads, resumable, once per node, in bounded memory.

<cache>/<bucket>--<prefix>-<version>/           appears by one rename, when every byte is verified
<cache>/<bucket>--<prefix>-<version>.partial/   what arrived so far; a killed fetch goes on from it
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from serving.errors import MirrorError, WeightsError
from serving.mirror.manifest import Manifest, ManifestFile
from serving.mirror.read import missing_files, read_manifest
from serving.mirror.store import PARALLEL, Location, client, parse_uri, plain_errors

Report = Callable[[str], None]
PIECE_BYTES = 2**20
"""Bytes that a transfer holds in memory at a time."""
SPARE_BYTES = 256 * 2**20
REPORT_EVERY_S = 3.0


def fetch(uri: str, cache: Path, *, report: Report = lambda line: None, s3: Any = None) -> Path:
    """The folder with the verified copy of `uri`, made in `cache` when it is not there yet.

    Raises `MirrorError` when the mirror is absent, damaged or unreachable, `WeightsError` when the disk is too small.
    """
    location = parse_uri(uri)
    s3 = s3 or client()
    with plain_errors(f"fetch {uri}"):
        manifest = read_manifest(s3, location)
        if manifest is None:
            raise MirrorError(f"{uri} has no manifest, so nothing complete is there; fill it (`pulumi up` does)")
        final = cache / f"{location.bucket}--{location.prefix.replace('/', '--')}-{manifest.version}"
        if final.is_dir():
            return final
        if missing := missing_files(s3, location, manifest):
            raise MirrorError(
                f"{uri} lacks {len(missing)} of its files, first {missing[0]!r}; fill it again (`pulumi up` does)"
            )
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{final}.lock"):
            if not final.is_dir():
                _Fetch(s3, location, manifest, final.with_name(final.name + ".partial"), report).run()
                os.rename(f"{final}.partial", final)
    return final


@dataclass
class _Fetch:
    s3: Any
    location: Location
    manifest: Manifest
    folder: Path
    report: Report
    _done: int = 0
    _started: float = field(default_factory=time.monotonic)
    _reported: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Brings `folder` to what the manifest says."""
        self.folder.mkdir(exist_ok=True)
        self._drop_strangers()
        self._disk_has_room()
        self.report(
            f"fetching {self.location}: {len(self.manifest.files)} files, {self.manifest.total_bytes / 1e6:.0f} MB"
        )
        with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
            futures = [
                pool.submit(self._chunk, file, self._prepare(file), chunk)
                for file in self.manifest.files
                for chunk in file.ranges()
            ]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for file in self.manifest.files:
            self._prepare(file)

    def _drop_strangers(self) -> None:
        """Deletes what a different version or a hand left; `.partial` must end as exactly the manifest's files."""
        wanted = {file.path for file in self.manifest.files}
        for path in sorted(self.folder.rglob("*")):
            if path.is_symlink() or (path.is_file() and path.relative_to(self.folder).as_posix() not in wanted):
                path.unlink()

    def _disk_has_room(self) -> None:
        here = sum(path.stat().st_blocks * 512 for path in self.folder.rglob("*") if path.is_file())
        needed, free = self.manifest.total_bytes - here + SPARE_BYTES, shutil.disk_usage(self.folder).free
        if needed > free:
            raise WeightsError(
                f"{self.folder.parent} has {free / 1e9:.1f} GB free and the model needs {needed / 1e9:.1f} GB; "
                "give the node a larger disk, or set MODELFLEET_MODEL_CACHE to one"
            )

    def _prepare(self, file: ManifestFile) -> Path:
        path = self.folder / file.path
        if not path.exists() or path.stat().st_size != file.size:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as stream:
                stream.truncate(file.size)
        return path

    def _chunk(self, file: ManifestFile, path: Path, chunk: tuple[int, int, int]) -> None:
        index, offset, length = chunk
        if _hash_range(path, offset, length) != file.chunks[index]:
            self._download(file, path, chunk)
        self._progress(length)

    def _download(self, file: ManifestFile, path: Path, chunk: tuple[int, int, int]) -> None:
        index, offset, length = chunk
        key = self.location.key(self.manifest.version, file.path)
        answer = self.s3.get_object(Bucket=self.location.bucket, Key=key, Range=f"bytes={offset}-{offset + length - 1}")
        digest, written = hashlib.sha256(), 0
        with answer["Body"] as body, path.open("r+b", buffering=0) as stream:
            stream.seek(offset)
            while written < length and (piece := body.read(min(PIECE_BYTES, length - written))):
                digest.update(piece)
                stream.write(piece)
                written += len(piece)
        if written != length or digest.hexdigest() != file.chunks[index]:
            raise MirrorError(
                f"{self.location}: {file.path} is not what the manifest says at byte {offset}; fill the mirror again"
            )

    def _progress(self, length: int) -> None:
        with self._lock:
            self._done += length
            now = time.monotonic()
            if now - self._reported >= REPORT_EVERY_S:
                self._reported = now
                speed = self._done / 1e6 / (now - self._started)
                self.report(f"{self._done / 1e6:.0f} of {self.manifest.total_bytes / 1e6:.0f} MB, {speed:.0f} MB/s")


def _hash_range(path: Path, offset: int, length: int) -> str | None:
    """Hash of what is there; None without reading when the range was never written (a hole)."""
    with path.open("rb") as stream:
        try:
            if os.lseek(stream.fileno(), offset, os.SEEK_DATA) >= offset + length:
                return None
        except OSError:  # ENXIO: nothing but a hole up to the end
            return None
        digest = hashlib.sha256()
        stream.seek(offset)
        while length and (piece := stream.read(min(PIECE_BYTES, length))):
            digest.update(piece)
            length -= len(piece)
    return digest.hexdigest()
