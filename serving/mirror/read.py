"""Reading a mirror's manifest, and telling whether the mirror is whole."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from botocore.exceptions import ClientError

from serving.errors import MirrorError
from serving.mirror.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from serving.mirror.store import Location, client, is_missing, parse_uri, plain_errors, sizes_below


class Status(StrEnum):
    """State of a mirror."""

    ABSENT = "absent"
    COMPLETE = "complete"
    DAMAGED = "damaged"


def status(uri: str, *, s3: Any = None) -> Status:
    """Whether the copy at `uri` is whole: its manifest is sound and every file is there in its size.

    A missing bucket counts as absent; raises `MirrorError` when S3 cannot be asked.
    """
    s3, location = s3 or client(), parse_uri(uri)
    with plain_errors(f"look at {uri}"):
        try:
            manifest = read_manifest(s3, location)
        except MirrorError:
            return Status.DAMAGED
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "NoSuchBucket":
                return Status.ABSENT
            raise
        if manifest is None:
            return Status.ABSENT
        return Status.DAMAGED if missing_files(s3, location, manifest) else Status.COMPLETE


def read_manifest(s3: Any, location: Location) -> Manifest | None:
    """The manifest, None when there is none; raises `MirrorError` when it cannot be trusted."""
    try:
        answer = s3.get_object(Bucket=location.bucket, Key=location.key(MANIFEST))
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    with answer["Body"] as body:
        if answer["ContentLength"] > MAX_MANIFEST_BYTES:
            raise MirrorError(f"{location}: the manifest has {answer['ContentLength']} bytes; fill the mirror again")
        return parse_manifest(body.read(), str(location))


def missing_files(s3: Any, location: Location, manifest: Manifest) -> list[str]:
    """Paths that the manifest names and that are not there in their size."""
    there = sizes_below(s3, location, manifest.version)
    return [file.path for file in manifest.files if there.get(location.key(manifest.version, file.path)) != file.size]
