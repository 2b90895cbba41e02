"""Reads a mirror's manifest, and tells whether the mirror is complete."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from botocore.exceptions import ClientError

from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from modelfleet.serving.mirror.proof import Expected
from modelfleet.serving.mirror.store import Location, S3Store, Store, parse_uri, plain_errors


class Status(StrEnum):
    """State of a mirror."""

    ABSENT = "absent"
    COMPLETE = "complete"
    DAMAGED = "damaged"


def status(uri: str, *, s3: Any = None, expected: Expected | None = None) -> Status:
    """The state of the copy at `uri`: complete if its manifest is valid and every file is there with its size.

    With `expected` the manifest must also be so. A missing bucket counts as absent; raises `MirrorError` when S3
    cannot be queried.
    """
    location = parse_uri(uri)
    store = S3Store(location.bucket, s3)
    with plain_errors(f"look at {uri}"):
        try:
            manifest = read_manifest(store, location, expected)
        except MirrorError:
            return Status.DAMAGED
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "NoSuchBucket":
                return Status.ABSENT
            raise
        if manifest is None:
            return Status.ABSENT
        return Status.DAMAGED if missing_files(store, location, manifest) else Status.COMPLETE


def read_manifest(store: Store, location: Location, expected: Expected | None = None) -> Manifest | None:
    """The manifest, or None when there is none; raises `MirrorError` when it cannot be trusted.

    With `expected` only a manifest that is so can be.
    """
    data = store.read(location.key(MANIFEST), MAX_MANIFEST_BYTES)
    if data is None:
        return None
    manifest = parse_manifest(data, str(location))
    if expected is not None:
        expected.verify(store, location, data, manifest)
    return manifest


def missing_files(store: Store, location: Location, manifest: Manifest) -> list[str]:
    """Paths that the manifest names but that are missing or have another size."""
    folder = location.key(manifest.version, "")
    there = {key.removeprefix(folder): stored.size for key, stored in store.list(folder).items()}
    return [file.path for file in manifest.files if there.get(file.path) != file.size]
