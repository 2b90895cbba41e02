"""Where the bytes of a copy come from: a folder, or a prefix of object storage. `hub.py` adds the Hub.

An origin is read in ranges, straight into the upload. So a copy needs no disk, however large the model is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelfleet.serving.mirror.open import open_store
from modelfleet.serving.mirror.prefix import below
from modelfleet.serving.mirror.read import read_manifest
from modelfleet.serving.mirror.store import PIECE_BYTES, SCHEMES, parse_uri, plain_errors

IGNORED = (".cache", ".git", ".lock", ".incomplete")
#: What git and its hosts keep beside a model's files. model-signing leaves it out unless asked (1.1.1 `hashing.py`,
#: `ignore_git_paths`), and no replica reads it.
OF_GIT = (".git", ".gitattributes", ".github", ".gitignore")


@dataclass(frozen=True)
class OriginFile:
    """One file: its path, its size in bytes, and its SHA-256 where the origin names it.

    A file without one is read twice: first to find it, because it is part of the version's name.
    """

    path: str
    size: int
    sha256: str | None = None


class Origin(Protocol):
    """Files that can be read in ranges, from several threads."""

    def __str__(self) -> str:
        """Its name in messages."""

    def files(self) -> list[OriginFile]:
        """All files that belong to the model."""

    def find(self, path: str) -> OriginFile | None:
        """A file beside them, whether it belongs to the model or not; None where there is none. Ask after `files`."""

    def stream(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        """Bytes of a range, in pieces."""


class Folder:
    """A folder on this machine, in Hugging Face layout."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def files(self) -> list[OriginFile]:
        """See `Origin`; without the caches and locks of other tools."""
        found = (path for path in sorted(self.path.rglob("*")) if path.is_file())
        named = ((path.relative_to(self.path), path.stat().st_size) for path in found)
        return [OriginFile(name.as_posix(), size) for name, size in named if not _is_ignored(name)]

    def find(self, path: str) -> OriginFile | None:
        """See `Origin`."""
        file = self.path / path
        return OriginFile(path, file.stat().st_size) if file.is_file() else None

    def stream(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        """See `Origin`."""
        with (self.path / path).open("rb") as stream:
            stream.seek(offset)
            while length and (piece := stream.read(min(PIECE_BYTES, length))):
                length -= len(piece)
                yield piece


def _is_ignored(name: Path) -> bool:
    return is_of_git(name.as_posix()) or any(part.endswith(IGNORED) for part in name.parts)


def is_of_git(path: str) -> bool:
    """Whether it is one of `OF_GIT` beside the files, or below one."""
    return path.partition("/")[0] in OF_GIT


class Prefix:
    """Everything below `s3://bucket/prefix`, gs:// or az://; a prefix with our manifest is what the manifest names."""

    def __init__(self, uri: str) -> None:
        self.location = parse_uri(uri, *SCHEMES)
        self._objects: dict[str, tuple[str, str | None]] = {}
        self._sizes: dict[str, int] = {}
        with plain_errors(f"read {uri}"):
            self._store = open_store(self.location)

    def __str__(self) -> str:
        return str(self.location)

    def files(self) -> list[OriginFile]:
        """See `Origin`."""
        with plain_errors(f"read {self}"):
            manifest = read_manifest(self._store, self.location)
            if manifest is None:
                found = [file for file in below(self._store, self.location) if not is_of_git(file.path)]
                self._objects = {file.path: (file.key, file.tag) for file in found}
                self._sizes = {file.path: file.size for file in found}
                return [OriginFile(file.path, file.size) for file in found]
        named = [file for file in manifest.files if not is_of_git(file.path)]
        self._objects = {file.path: (self.location.key(manifest.version, file.path), None) for file in named}
        self._sizes = {file.path: file.size for file in named}
        return [OriginFile(file.path, file.size, file.sha256) for file in named]

    def find(self, path: str) -> OriginFile | None:
        """See `Origin`; a mirror has nothing beside its files."""
        return OriginFile(path, self._sizes[path]) if path in self._sizes else None

    def stream(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        """See `Origin`; fails if the object has changed since `files` saw it."""
        key, tag = self._objects[path]
        with plain_errors(f"read {self}"):
            yield from self._store.stream(key, offset, length, tag) if length else ()
