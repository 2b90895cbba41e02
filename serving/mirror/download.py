"""Makes a folder match a list of objects: chunk by chunk, in parallel, resuming from what is there."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from modelfleet.serving.errors import MirrorError, WeightsError
from modelfleet.serving.mirror.manifest import CHUNK_BYTES, Checksum
from modelfleet.serving.mirror.store import PIECE_BYTES, READERS, Store

Report = Callable[[str], None]
SPARE_BYTES = 256 * 2**20
"""Bytes that stay free on the node's disk."""
REPORT_EVERY_S = 3.0


@dataclass(frozen=True)
class Wanted:
    """One file: its path in the folder, its object, size in bytes, and what proves its content.

    `chunks` are checksums of its pieces. Without them, `tag` ensures that all pieces come from the same object.
    """

    path: str
    key: str
    size: int
    tag: str | None
    chunks: Sequence[str] | None


@dataclass
class Download:
    """Makes `folder` match `wanted`, reading from `store`; `where` names the store in messages."""

    store: Store
    where: str
    wanted: Sequence[Wanted]
    folder: Path
    report: Report
    chunk_bytes: int = CHUNK_BYTES
    _done: int = 0
    _started: float = field(default_factory=time.monotonic)
    _reported: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size for file in self.wanted)

    def run(self, room: AbstractContextManager[None] | None = None) -> None:
        """Run the download; raises `MirrorError` for a damaged object, `WeightsError` when the disk is too small.

        `room` makes room before the files get their size.
        """
        self.folder.mkdir(exist_ok=True)
        self._drop_strangers()
        with room or nullcontext():
            self._disk_has_room()
            self.report(f"fetching {self.where}: {len(self.wanted)} files, {self.total_bytes / 1e6:.0f} MB")
            paths = [self._prepare(file) for file in self.wanted]
        with ThreadPoolExecutor(max_workers=READERS) as pool:
            jobs = [
                pool.submit(self._chunk, file, path, *chunk)
                for file, path in zip(self.wanted, paths, strict=True)
                for chunk in ranges(file.size, self.chunk_bytes)
            ]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.report(f"fetched {self.where} in {time.monotonic() - self._started:.0f} s")

    def _drop_strangers(self) -> None:
        """Deletes everything else: the folder must end up with exactly the wanted files."""
        wanted = {file.path for file in self.wanted}
        for path in sorted(self.folder.rglob("*")):
            if path.is_symlink() or (path.is_file() and path.relative_to(self.folder).as_posix() not in wanted):
                path.unlink()

    def _disk_has_room(self) -> None:
        here = sum(path.stat().st_blocks * 512 for path in self.folder.rglob("*") if path.is_file())
        needed, free = self.total_bytes - here + SPARE_BYTES, shutil.disk_usage(self.folder).free
        if needed > free:
            raise WeightsError(
                f"{self.folder.parent} has {free / 1e9:.1f} GB free and the model needs {needed / 1e9:.1f} GB; "
                "give the node a larger disk, or set MODELFLEET_MODEL_CACHE to a folder on one"
            )

    def _prepare(self, file: Wanted) -> Path:
        """Makes the file at its full size, with holes where nothing has arrived yet."""
        path = self.folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            stream.truncate(file.size)
        return path

    def _chunk(self, file: Wanted, path: Path, index: int, offset: int, length: int) -> None:
        expected = file.chunks[index] if file.chunks is not None else None
        # Without a checksum we cannot tell whether an earlier run wrote the whole chunk, so we read it again.
        if expected is None or _checksum_of_range(path, offset, length) != expected:
            checksum, written = Checksum(), 0
            with path.open("r+b", buffering=0) as stream:
                stream.seek(offset)
                for piece in self.store.stream(file.key, offset, length, file.tag):
                    checksum.update(piece)
                    stream.write(piece)
                    written += len(piece)
            if written != length or (expected is not None and checksum.hexdigest() != expected):
                raise MirrorError(f"{self.where}: {file.path} is damaged at byte {offset}; fill the mirror again")
        self._progress(length)

    def _progress(self, length: int) -> None:
        with self._lock:
            self._done += length
            now = time.monotonic()
            if now - self._reported >= REPORT_EVERY_S:
                self._reported = now
                speed = self._done / 1e6 / (now - self._started)
                self.report(f"{self._done / 1e6:.0f} of {self.total_bytes / 1e6:.0f} MB, {speed:.0f} MB/s")


def ranges(size: int, chunk_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(index, first byte, length) of each chunk of a file."""
    for index, offset in enumerate(range(0, size, chunk_bytes)):
        yield index, offset, min(chunk_bytes, size - offset)


def _checksum_of_range(path: Path, offset: int, length: int) -> str | None:
    """Checksum of a range; None, without reading, if the range was never written (a hole)."""
    with path.open("rb") as stream:
        try:
            if os.lseek(stream.fileno(), offset, os.SEEK_DATA) >= offset + length:
                return None
        except OSError:  # ENXIO: nothing but a hole up to the end
            return None
        checksum = Checksum()
        stream.seek(offset)
        while length and (piece := stream.read(min(PIECE_BYTES, length))):
            checksum.update(piece)
            length -= len(piece)
    return checksum.hexdigest()
