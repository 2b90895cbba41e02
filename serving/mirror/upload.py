"""Filling a mirror: a resumable, verified copy whose manifest comes last.

Bytes go from their origin straight into S3, part by part. Nothing is kept on a disk, and in memory only three parts
of each file that is on its way. Several files are copied at a time; within a file parts are sent in order, because its
SHA-256 is computed on the way.

If a call is killed at any moment, the next one resumes. Files that have arrived are not sent again, and of a half-sent
file only the rest is. What the next call did not see on the way, it reads back from the bucket before it believes it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.download import ranges
from modelfleet.serving.mirror.manifest import (
    CHUNK_BYTES,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PROVED,
    Checksum,
    Manifest,
    ManifestFile,
    parse_manifest,
    version_of,
)
from modelfleet.serving.mirror.origin import Folder, Origin, OriginFile
from modelfleet.serving.mirror.proof import Expected, KmsKey, name_of, statement
from modelfleet.serving.mirror.read import read_manifest
from modelfleet.serving.mirror.signer import Signature
from modelfleet.serving.mirror.store import PARALLEL, Location, S3Store, parse_uri, plain_errors

T = TypeVar("T")
R = TypeVar("R")
Report = Callable[[str], None]
#: What every model folder has. Without it the origin is something else.
CONFIG = "config.json"
#: Most keys of one DeleteObjects. https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
DELETE_AT_ONCE = 1000


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
    signature: Signature | None = None,
    key: KmsKey | None = None,
) -> Manifest:
    """`fill_from` a folder on this machine."""
    return fill_from(
        Folder(folder),
        uri,
        model_id=model_id,
        source=source,
        source_revision=source_revision,
        report=report,
        chunk_bytes=chunk_bytes,
        s3=s3,
        signature=signature,
        key=key,
    )


def fill_from(
    origin: Origin,
    uri: str,
    *,
    model_id: str,
    source: str,
    source_revision: str | None = None,
    report: Report = lambda line: None,
    chunk_bytes: int = CHUNK_BYTES,
    s3: Any = None,
    signature: Signature | None = None,
    key: KmsKey | None = None,
) -> Manifest:
    """Copies a model to `uri` and returns its manifest; sends nothing that is already there.

    `signature` says who must have signed the files; it is verified before the first of them is sent, and the manifest
    names the signer. The manifest is signed with `key`, and what an earlier manifest says counts only if it is, too.

    Raises `MirrorError` when the origin is not a model or not signed so, changes during the copy, or S3 refuses.
    """
    location = parse_uri(uri)
    found = origin.files()
    if CONFIG not in {file.path for file in found}:
        raise MirrorError(f"{origin} has no {CONFIG}, so it is not a model; correct the weights source")
    with plain_errors(f"fill {uri}"):
        bucket = S3Store(location.bucket, s3)
        replaced = _current(bucket, location)
        signer = signature.signer.fingerprint if signature is not None else ""
        known = _current(bucket, location, Expected(key.public(), signer)) if key is not None else replaced
        files = with_hashes(origin, found, chunk_bytes, report)
        if signature is not None:
            signature.verify(origin, files, report)
        version = version_of((file.path, file.size, file.sha256 or "") for file in files)
        job = _Fill(bucket, location.key(version, ""), origin, chunk_bytes, report, _verified(known, version))
        manifest = Manifest(
            model_id=model_id,
            source=source,
            source_revision=source_revision,
            signer=signer or None,
            files=job.copy(files),
            chunk_bytes=chunk_bytes,
        )
        body = manifest.to_json()
        if key is not None:
            proof = key.sign(statement(location, body, signer))
            bucket.s3.put_object(Bucket=location.bucket, Key=location.key(name_of(body)), Body=proof)
        bucket.s3.put_object(
            Bucket=location.bucket,
            Key=location.key(MANIFEST),
            Body=body,
            ContentType="application/json",
            ChecksumAlgorithm="SHA256",
        )
        kept = [manifest, *([replaced] if replaced else []), *_proved(bucket, location, report)]
        names = {name for one in kept for name in (one.version, name_of(one.to_json()))}
        _delete_all_but(names, bucket, location, report)
    report(f"{uri} has {len(manifest.files)} files, {manifest.total_bytes / 1e6:.0f} MB")
    return manifest


def _proved(bucket: S3Store, location: Location, report: Report) -> list[Manifest]:
    """The versions that a stack may go back to. One that cannot be read is said, and keeps nothing."""
    found = []
    for key in bucket.list(location.key(PROVED, "")):
        try:
            data = bucket.read(key, MAX_MANIFEST_BYTES)
            found += [parse_manifest(data, f"s3://{bucket.bucket}/{key}")] if data is not None else []
        except MirrorError as error:
            report(str(error))
    return found


def _current(bucket: S3Store, location: Location, expected: Expected | None = None) -> Manifest | None:
    """The current manifest, or None; a damaged one, or one not as `expected`, counts as none: it will be replaced."""
    try:
        return read_manifest(bucket, location, expected)
    except MirrorError:
        return None


def _verified(manifest: Manifest | None, version: str) -> dict[str, ManifestFile]:
    """Files by path that an earlier call has seen whole: those of a manifest of the same version."""
    same = manifest is not None and manifest.version == version
    return {file.path: file for file in manifest.files} if manifest is not None and same else {}


def with_hashes(
    origin: Origin, files: Sequence[OriginFile], chunk_bytes: int, report: Report = lambda line: None
) -> list[OriginFile]:
    """The files, each with its SHA-256; those without one are read."""
    unknown = [file for file in files if file.sha256 is None]
    report(f"hashing {len(unknown)} of {len(files)} files of {origin}")
    entries = _in_parallel(lambda file: entry_of(origin, file, chunk_bytes), unknown)
    hashed = [OriginFile(entry.path, entry.size, entry.sha256) for entry in entries]
    return [*(file for file in files if file.sha256 is not None), *hashed]


def entry_of(origin: Origin, file: OriginFile, chunk_bytes: int) -> ManifestFile:
    """The manifest's entry of a file, which is read whole."""
    hashes = _Hashes()
    for body in _bodies(origin.stream(file.path, 0, file.size), chunk_bytes):
        hashes.add(body)
    return hashes.entry(file.path)


def _in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Results in the items' order; after the first error nothing else is started."""
    with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
        jobs: list[Future[R]] = [pool.submit(function, item) for item in items]
        try:
            return [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _bodies(pieces: Iterable[bytes], chunk_bytes: int) -> Iterator[bytes]:
    """The same bytes in pieces of `chunk_bytes`; the last one may be shorter."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        start = 0
        while size + len(piece) - start >= chunk_bytes:
            end = start + chunk_bytes - size
            yield b"".join([*held, piece[start:end]])
            held.clear()
            size, start = 0, end
        held.append(piece[start:])
        size += len(piece) - start
    if size:
        yield b"".join(held)


class _Hashes:
    """What a manifest says about a file, computed from its chunks in order."""

    def __init__(self) -> None:
        self._whole, self._chunks, self.size = hashlib.sha256(), list[str](), 0

    def add(self, chunk: bytes) -> None:
        """Takes the next chunk."""
        self._whole.update(chunk)
        self._chunks.append(Checksum(chunk).hexdigest())
        self.size += len(chunk)

    def entry(self, path: str) -> ManifestFile:
        """The manifest's entry for a file with these chunks."""
        return ManifestFile(path=path, size=self.size, sha256=self._whole.hexdigest(), chunks=self._chunks)


@dataclass(frozen=True)
class _Fill:
    """Copies files from `origin` to keys that begin with `folder`."""

    bucket: S3Store
    folder: str
    origin: Origin
    chunk_bytes: int
    report: Report
    verified: Mapping[str, ManifestFile]

    def copy(self, files: Iterable[OriginFile]) -> list[ManifestFile]:
        """Copies what is missing, the smallest files first, so that a broken setup fails early."""
        there = {key: stored.size for key, stored in self.bucket.list(self.folder).items()}
        in_order = sorted(files, key=lambda file: file.size)
        return _in_parallel(lambda file: self._copy(file, there.get(self.folder + file.path)), in_order)

    def _copy(self, file: OriginFile, size_there: int | None) -> ManifestFile:
        if size_there == file.size:
            entry = self.verified.get(file.path) or self._read_back(file)
            if entry.sha256 == file.sha256:
                return entry
        self.report(f"uploading {file.path} ({file.size / 1e6:.1f} MB)")
        if file.size <= self.chunk_bytes:
            return self._send_whole(file)
        return self._send_parts(file, resume=True) or self._send_parts(file, resume=False) or self._changed(file)

    def _read_back(self, file: OriginFile) -> ManifestFile:
        """What the bucket holds under the file's key."""
        hashes = _Hashes()
        for _, offset, length in ranges(file.size, self.chunk_bytes):
            hashes.add(b"".join(self.bucket.stream(self.folder + file.path, offset, length)))
        return hashes.entry(file.path)

    def _changed(self, file: OriginFile) -> ManifestFile:
        raise MirrorError(
            f"{file.path} of {self.origin} has other bytes than its SHA-256 says, or changed during the copy; run again"
        )

    def _send_whole(self, file: OriginFile) -> ManifestFile:
        hashes, body = _Hashes(), b"".join(self.origin.stream(file.path, 0, file.size))
        if body:
            hashes.add(body)
        entry = hashes.entry(file.path)
        if entry.sha256 != file.sha256:
            self._changed(file)
        self.bucket.s3.put_object(
            **self._target(file),
            Body=body,
            Metadata={"sha256": entry.sha256},
            ChecksumSHA256=_base64(hashlib.sha256(body)),
        )
        return entry

    def _target(self, file: OriginFile) -> dict[str, str]:
        return {"Bucket": self.bucket.bucket, "Key": self.folder + file.path}

    def _send_parts(self, file: OriginFile, *, resume: bool) -> ManifestFile | None:
        """Sends the file in parts; None if what arrived is not what its SHA-256 says.

        Parts that an earlier call has sent never came by here, so such a file is read back from the bucket.
        """
        target = self._target(file)
        upload, parts = self._open_upload(file) if resume else (self._new_upload(file), [])
        kept, hashes = len(parts), _Hashes()
        start = kept * self.chunk_bytes
        with ThreadPoolExecutor(max_workers=1) as sender:
            on_its_way: Future[dict[str, Any]] | None = None
            rest = self.origin.stream(file.path, start, max(0, file.size - start))
            for number, body in enumerate(_bodies(rest, self.chunk_bytes), start=kept + 1):
                hashes.add(body)
                if on_its_way is not None:
                    parts.append(on_its_way.result())
                on_its_way = sender.submit(self._send_part, target, upload, number, body)
            if on_its_way is not None:
                parts.append(on_its_way.result())
        entry = hashes.entry(file.path)
        if not kept and entry.sha256 != file.sha256:
            self.bucket.s3.abort_multipart_upload(**target, UploadId=upload)
            return None
        self.bucket.s3.complete_multipart_upload(**target, UploadId=upload, MultipartUpload={"Parts": parts})
        if kept:
            entry = self._read_back(file)
        return entry if entry.sha256 == file.sha256 else None

    def _new_upload(self, file: OriginFile) -> str:
        created = self.bucket.s3.create_multipart_upload(
            **self._target(file),
            Metadata={"sha256": file.sha256},
            ChecksumAlgorithm="SHA256",
            ChecksumType="COMPOSITE",
        )
        return str(created["UploadId"])

    def _open_upload(self, file: OriginFile) -> tuple[str, list[dict[str, Any]]]:
        """An interrupted upload of this file with the parts that arrived, up to the first gap; otherwise a new one.

        The newest one, if there are several; S3's lifecycle rule aborts the others.
        """
        target = self._target(file)
        pages = self.bucket.s3.get_paginator("list_multipart_uploads").paginate(
            Bucket=target["Bucket"], Prefix=target["Key"]
        )
        found = [one for page in pages for one in page.get("Uploads", ()) if one["Key"] == target["Key"]]
        if not found:
            return self._new_upload(file), []
        upload = str(max(found, key=lambda one: one["Initiated"])["UploadId"])
        listing = self.bucket.s3.get_paginator("list_parts").paginate(**target, UploadId=upload)
        arrived = {part["PartNumber"]: part for page in listing for part in page.get("Parts", ())}
        kept = []
        for index, _, length in ranges(file.size, self.chunk_bytes):
            part = arrived.get(index + 1)
            if part is None or part["Size"] != length:
                break
            kept.append(_finished(part))
        return upload, kept

    def _send_part(self, target: Mapping[str, str], upload: str, number: int, body: bytes) -> dict[str, Any]:
        """Sends one part, whose SHA-256 S3 checks; returns what completing the upload needs."""
        checksum = _base64(hashlib.sha256(body))
        answer = self.bucket.s3.upload_part(
            **target, UploadId=upload, PartNumber=number, Body=body, ChecksumSHA256=checksum
        )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}


def _finished(part: Mapping[str, Any]) -> dict[str, Any]:
    """A listed part, as completing the upload needs it. MinIO and moto list no checksums, and then want none."""
    return {name: part[name] for name in ("PartNumber", "ETag", "ChecksumSHA256") if name in part}


def _delete_all_but(versions: set[str], bucket: S3Store, location: Location, report: Report) -> None:
    """Deletes other versions and signatures. The one just replaced is among `versions`: replicas may still read it.

    DeleteObjects answers 200 and lists what it could not delete. The copy is whole by then, so that is only said.
    """
    prefix, staying = location.key(""), {*versions, MANIFEST, PROVED}
    stale = [key for key in bucket.list(prefix) if key.removeprefix(prefix).split("/")[0] not in staying]
    refused: list[Mapping[str, str]] = []
    for start in range(0, len(stale), DELETE_AT_ONCE):
        objects = [{"Key": key} for key in stale[start : start + DELETE_AT_ONCE]]
        answer = bucket.s3.delete_objects(Bucket=location.bucket, Delete={"Objects": objects, "Quiet": True})
        refused += answer.get("Errors", ())
    if refused:
        first = refused[0]
        report(
            f"{len(refused)} files of older versions stay and cost storage, first {first.get('Key')}: "
            f"{first.get('Code')} {first.get('Message', '')}; allow s3:DeleteObject there, or delete them by hand"
        )


def _base64(digest: Any) -> str:
    return base64.b64encode(digest.digest()).decode()
