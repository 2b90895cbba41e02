"""Filling a mirror: a resumable, verified upload whose manifest comes last.

If a call is killed at any moment, the next one resumes: it skips files that are there with their size and hash, and
sends only the missing parts of a half-sent file.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.download import ranges
from modelfleet.serving.mirror.manifest import CHUNK_BYTES, MANIFEST, Checksum, Manifest, ManifestFile
from modelfleet.serving.mirror.read import read_manifest
from modelfleet.serving.mirror.store import PARALLEL, Location, S3Store, client, is_missing, parse_uri, plain_errors

Report = Callable[[str], None]
IGNORED = (".cache", ".git", ".lock", ".incomplete")


def fill(
    folder: Path,
    uri: str,
    *,
    model_id: str,
    source: str,
    source_revision: str | None = None,
    report: Report = lambda line: None,
    chunk_bytes: int = CHUNK_BYTES,
    s3: Any = None,
) -> Manifest:
    """Copies the model in `folder` to `uri` and returns its manifest; does nothing if it is already there.

    Raises `MirrorError` when the folder is not a model, changes during the upload, or S3 refuses.
    """
    location = parse_uri(uri)
    report(f"hashing {folder}")
    manifest = Manifest(
        model_id=model_id,
        source=source,
        source_revision=source_revision,
        files=hash_folder(folder, chunk_bytes),
        chunk_bytes=chunk_bytes,
    )
    s3 = s3 or client()
    with plain_errors(f"fill {uri}"):
        replaced = _current(s3, location)
        job = _Fill(s3, location, manifest, folder, report)
        job.send_files()
        s3.put_object(
            Bucket=location.bucket,
            Key=location.key(MANIFEST),
            Body=manifest.to_json(),
            ContentType="application/json",
            ChecksumAlgorithm="SHA256",
        )
        job.delete_all_but({manifest.version} | ({replaced.version} if replaced else set()))
    report(f"{uri} has {len(manifest.files)} files, {manifest.total_bytes / 1e6:.0f} MB")
    return manifest


def _current(s3: Any, location: Location) -> Manifest | None:
    """The current manifest, or None; a damaged one counts as none, because it will be replaced."""
    try:
        return read_manifest(S3Store(location.bucket, s3), location)
    except MirrorError:
        return None


def hash_folder(folder: Path, chunk_bytes: int) -> list[ManifestFile]:
    """The manifest's entries for the model in `folder`; raises `MirrorError` when it is not a model."""
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.endswith(IGNORED) for part in path.relative_to(folder).parts)
    ]
    if not (folder / "config.json").is_file():
        raise MirrorError(f"{folder} has no config.json, so it is not a model folder; correct the weights source")
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(lambda path: _hash_file(path, path.relative_to(folder).as_posix(), chunk_bytes), paths))


def _hash_file(path: Path, name: str, chunk_bytes: int) -> ManifestFile:
    whole, chunks, size = hashlib.sha256(), [], 0
    with path.open("rb") as stream:
        while piece := stream.read(chunk_bytes):
            whole.update(piece)
            chunks.append(Checksum(piece).hexdigest())
            size += len(piece)
    return ManifestFile(path=name, size=size, sha256=whole.hexdigest(), chunks=chunks)


@dataclass(frozen=True)
class _Fill:
    s3: Any
    location: Location
    manifest: Manifest
    folder: Path
    report: Report

    def send_files(self) -> None:
        """Sends what is missing, the largest file last, so that a broken setup fails early."""
        for file in sorted(self.manifest.files, key=lambda file: file.size):
            if not self._is_there(file):
                self.report(f"uploading {file.path} ({file.size / 1e6:.1f} MB)")
                self._send_whole(file) if len(file.chunks) <= 1 else self._send_parts(file)

    def delete_all_but(self, versions: set[str]) -> None:
        """Deletes older versions; the one just replaced stays for replicas that are still reading it."""
        prefix = self.location.key("")
        stale = [
            key
            for key in S3Store(self.location.bucket, self.s3).list(prefix)
            if (version := key.removeprefix(prefix).split("/")[0]) not in versions and version != MANIFEST
        ]
        for start in range(0, len(stale), 1000):
            objects = [{"Key": key} for key in stale[start : start + 1000]]
            self.s3.delete_objects(Bucket=self.location.bucket, Delete={"Objects": objects, "Quiet": True})

    def _key(self, file: ManifestFile) -> str:
        return self.location.key(self.manifest.version, file.path)

    def _is_there(self, file: ManifestFile) -> bool:
        try:
            head = self.s3.head_object(Bucket=self.location.bucket, Key=self._key(file))
        except ClientError as error:
            if is_missing(error):
                return False
            raise
        return bool(head["ContentLength"] == file.size and head["Metadata"].get("sha256") == file.sha256)

    def _send_whole(self, file: ManifestFile) -> None:
        body = (self.folder / file.path).read_bytes()
        if hashlib.sha256(body).hexdigest() != file.sha256:
            raise MirrorError(f"{self.folder / file.path} changed during the upload; run again")
        self.s3.put_object(
            Bucket=self.location.bucket,
            Key=self._key(file),
            Body=body,
            Metadata={"sha256": file.sha256},
            ChecksumSHA256=_base64(file.sha256),
        )

    def _send_parts(self, file: ManifestFile) -> None:
        target = {"Bucket": self.location.bucket, "Key": self._key(file)}
        upload_id, arrived = self._open_upload(file, target)
        with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
            futures = [
                pool.submit(self._send_part, file, upload_id, target, arrived.get(chunk[0] + 1), chunk)
                for chunk in ranges(file.size, self.manifest.chunk_bytes)
            ]
            try:
                parts = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.s3.complete_multipart_upload(**target, UploadId=upload_id, MultipartUpload={"Parts": parts})

    def _open_upload(self, file: ManifestFile, target: dict[str, str]) -> tuple[str, dict[int, dict[str, Any]]]:
        """An interrupted upload of this file, with the parts that arrived; otherwise a new upload."""
        pages = self.s3.get_paginator("list_multipart_uploads").paginate(Bucket=target["Bucket"], Prefix=target["Key"])
        for upload in (upload for page in pages for upload in page.get("Uploads", ())):
            if upload["Key"] == target["Key"]:
                listing = self.s3.get_paginator("list_parts").paginate(**target, UploadId=upload["UploadId"])
                return upload["UploadId"], {
                    part["PartNumber"]: part for page in listing for part in page.get("Parts", ())
                }
        created = self.s3.create_multipart_upload(
            **target, Metadata={"sha256": file.sha256}, ChecksumAlgorithm="SHA256", ChecksumType="COMPOSITE"
        )
        return created["UploadId"], {}

    def _send_part(
        self,
        file: ManifestFile,
        upload_id: str,
        target: dict[str, str],
        arrived: dict[str, Any] | None,
        chunk: tuple[int, int, int],
    ) -> dict[str, Any]:
        """Sends one part, unless an earlier call did; returns what completing the upload needs."""
        index, offset, length = chunk
        with (self.folder / file.path).open("rb") as stream:
            stream.seek(offset)
            body = stream.read(length)
        if Checksum(body).hexdigest() != file.chunks[index]:
            raise MirrorError(f"{self.folder / file.path} changed during the upload; run again")
        checksum = _base64(hashlib.sha256(body).hexdigest())
        if arrived is not None and _is_part(arrived, checksum, body):
            etag = arrived["ETag"]
        else:
            answer = self.s3.upload_part(
                **target, UploadId=upload_id, PartNumber=index + 1, Body=body, ChecksumSHA256=checksum
            )
            etag = answer["ETag"]
        return {"PartNumber": index + 1, "ETag": etag, "ChecksumSHA256": checksum}


def _is_part(part: dict[str, Any], checksum: str, body: bytes) -> bool:
    """Whether a listed part is `body`; by MD5 tag if this S3 lists no checksums (MinIO, moto)."""
    if "ChecksumSHA256" in part:
        return bool(part["ChecksumSHA256"] == checksum)
    return bool(part["ETag"].strip('"') == hashlib.md5(body, usedforsecurity=False).hexdigest())


def _base64(hex_digest: str) -> str:
    return base64.b64encode(bytes.fromhex(hex_digest)).decode()
