"""The seal's manifest: for whom the cache is, and the SHA-256 of its archive.

    <uri>/manifest.json     written last; without it there is no seal
    <uri>/<sha256>.tar      the cache's files, with their times; the name is the content's, so another Job never
                            changes what a replica reads

A seal is executed. Its SHA-256 finds what was damaged or swapped on the way; who may write below the prefix decides
about the rest, and that is the warm-up Job alone (docs/security.md).
"""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from modelfleet.serving.errors import MirrorError
from modelfleet.serving.seal.machine import Machine

MANIFEST: Final = "manifest.json"
SCHEMA: Final = 1
MAX_MANIFEST_BYTES: Final = 2**20
#: S3's limit for an object that is sent whole is 5 GiB. A cache has 5 to a few hundred MB.
MAX_BYTES: Final = 4 * 2**30
MAX_FILES: Final = 100_000


class SealManifest(BaseModel):
    """A whole seal. `key` is the plan's: a hash of image, accelerator, arguments and code."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    schema_version: int = Field(SCHEMA, alias="schema", ge=SCHEMA, le=SCHEMA)
    key: str = Field(max_length=64)
    model_id: str = Field(max_length=512)
    machine: Machine
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the archive.")
    size: PositiveInt = Field(le=MAX_BYTES, description="Bytes of the archive.")
    files: PositiveInt = Field(le=MAX_FILES, description="How many it has.")

    @property
    def archive(self) -> str:
        """Name of the archive beside the manifest."""
        return f"{self.sha256}.tar"

    def to_json(self) -> bytes:
        """The manifest as it is stored."""
        return self.model_dump_json(by_alias=True, indent=1).encode() + b"\n"


def parse_seal(data: bytes, where: str) -> SealManifest:
    """The manifest in `data`; raises `MirrorError` for anything that cannot be trusted."""
    try:
        return SealManifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "as a whole"
        raise MirrorError(f"{where}: the seal's manifest is not valid ({place}: {first['msg']}); delete it") from None
