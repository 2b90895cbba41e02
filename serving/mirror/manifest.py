"""The mirror's manifest: what a model's copy consists of, byte for byte.

    <uri>/manifest.json        written last; without it the mirror counts as absent
    <uri>/<version>/<file>…    the files in Hugging Face layout; `version` names their content
    <uri>/proved/…             manifests of versions that a stack may go back to: these stay

A changed model gets a new version next to the old one, so a replica that is still reading is never disturbed.

Two kinds of proof. The SHA-256 of each file names the version, and S3 checks it part by part during the upload. A
replica checks each chunk by its CRC-64/NVME, S3's own checksum: it is five times as fast here, and finds damage from a
transfer or a disk. Neither protects against someone who can write to the bucket, because the manifest is there too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Self

from awscrt.checksums import crc64nvme
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator, model_validator

from modelfleet.serving.errors import MirrorError

MANIFEST = "manifest.json"
PROVED = "proved"
"""Folder beside it with the manifests of versions that stay: `proved/<stack>/<version>.json`."""

SCHEMA = 2
CHUNK_BYTES = 32 * 2**20
"""Size of each piece that is checked, sent and read separately (small parts are up to four times slower)."""

MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 5 * 2**20, 512 * 2**20
"""S3's smallest part of an upload, and a limit on what a sender holds in memory per transfer."""

MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILES = 10_000
MAX_PARTS = 10_000
"""S3's limit for one upload: 320 GB in chunks of 32 MiB. No checkpoint has larger files."""

_CRC64 = re.compile(r"[0-9a-f]{16}")


class ManifestFile(BaseModel):
    """One file: path below the version's folder, size in bytes, SHA-256 of the whole, CRC-64/NVME of each chunk."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: str = Field(max_length=512)
    size: NonNegativeInt
    sha256: str = Field(pattern=r"[0-9a-f]{64}", max_length=64)
    chunks: list[str] = Field(max_length=MAX_PARTS)

    @field_validator("path")
    @classmethod
    def path_stays_in_its_folder(cls, value: str) -> str:
        """Refuses a path that leads out of the folder that it is written to."""
        path = PurePosixPath(value)
        clean = str(path) == value and not path.is_absolute() and ".." not in path.parts and value != "."
        if not clean or not value.isprintable() or "\\" in value or value == MANIFEST:
            raise ValueError("is not a clean relative path")
        return value


class Manifest(BaseModel):
    """A whole copy."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    schema_version: int = Field(SCHEMA, alias="schema")
    model_id: str
    source: str
    source_revision: str | None
    #: Fingerprint of who signed the files, as whoever copied them verified it; None where nobody had to.
    signer: str | None = None
    chunk_bytes: int = Field(CHUNK_BYTES, ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)
    files: list[ManifestFile] = Field(min_length=1, max_length=MAX_FILES)

    @model_validator(mode="after")
    def schema_is_known(self) -> Self:
        """Refuses another schema, which another version of modelfleet wrote."""
        if self.schema_version != SCHEMA:
            raise ValueError(f"found schema {self.schema_version}, expected {SCHEMA}")
        return self

    @model_validator(mode="after")
    def every_byte_has_a_checksum(self) -> Self:
        """Requires exactly one chunk for each byte of each file."""
        for file in self.files:
            if len(file.chunks) != -(-file.size // self.chunk_bytes) or not all(map(_CRC64.fullmatch, file.chunks)):
                raise ValueError(f"chunks do not cover {file.path}")
        return self

    @model_validator(mode="after")
    def no_file_is_named_twice_or_is_a_folder(self) -> Self:
        """Requires that all files can exist in one folder."""
        paths = [file.path for file in self.files]
        folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
        if len(set(paths)) != len(paths) or folders & set(paths):
            raise ValueError("a path is named twice, or is a file and a folder")
        return self

    @property
    def version(self) -> str:
        """Name of the content: the same files give the same version."""
        return version_of((file.path, file.size, file.sha256) for file in self.files)

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size for file in self.files)

    def to_json(self) -> bytes:
        """Canonical JSON: sorted keys, files in order of their path, no signer where there is none."""
        data = self.model_dump(by_alias=True)
        if self.signer is None:
            del data["signer"]  # the bytes of a manifest of before stay, and so does the name of its signature
        data["files"].sort(key=lambda file: file["path"])
        return json.dumps(data, sort_keys=True, indent=1).encode() + b"\n"


def version_of(files: Iterable[tuple[str, int, str]]) -> str:
    """The version of files given as path, size in bytes and SHA-256; their order does not matter."""
    lines = sorted(f"{path}\0{size}\0{sha256}" for path, size, sha256 in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


class Checksum:
    """CRC-64/NVME of the bytes given to `update`, as 16 lower-case hexadecimal digits, with S3's parameters."""

    def __init__(self, data: bytes = b"") -> None:
        self._value: int = crc64nvme(data)

    def update(self, data: bytes) -> None:
        """Add the next bytes."""
        self._value = crc64nvme(data, self._value)

    def hexdigest(self) -> str:
        """The checksum of all bytes so far."""
        return f"{self._value:016x}"


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`; raises `MirrorError` for anything that cannot be trusted."""
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "as a whole"
        raise MirrorError(
            f"{where}: the manifest is not valid ({place}: {first['msg']}); fill the mirror again"
        ) from None
