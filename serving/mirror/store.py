"""Object storage behind a mirror: what reading needs (`Store`), S3, and its errors as one line with the fix.

`gcs_azure.py` does the same for the other clouds; `open.py` chooses. We write only to S3 (`upload.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from modelfleet.serving.errors import MirrorError

PARALLEL = 8
"""Transfers at a time; with chunks of 32 MiB this limits memory to a quarter of a GiB."""

READERS = 16
"""Reads at a time of one download. Each holds a piece in memory, not a chunk."""

PIECE_BYTES = 2**19
"""Bytes that a transfer holds in memory at a time. A larger piece leaves the core's cache between reading, checksum and
write; smaller ones cost more calls (docs/benchmarks.md, "Weights from a fast S3 server")."""

SCHEMES = ("s3", "gs", "az")
"""Schemes that can be read."""


@dataclass(frozen=True)
class Location:
    """`s3://bucket/prefix`, or gs:// or az://; the prefix has no slash at either end."""

    bucket: str
    prefix: str
    scheme: str = "s3"

    def key(self, *parts: str) -> str:
        """The object key of `parts` below the prefix."""
        return "/".join([*([self.prefix] if self.prefix else []), *parts])

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}"


def parse_uri(uri: str, *schemes: str) -> Location:
    """The location that a URI names; raises `MirrorError` for any other form. `schemes` defaults to s3."""
    parts, schemes = urlsplit(uri), schemes or ("s3",)
    if parts.scheme not in schemes or not parts.netloc or parts.query or parts.fragment:
        allowed = " or ".join(f"{scheme}://bucket/prefix" for scheme in schemes)
        raise MirrorError(f"found mirror {uri!r}; expected {allowed}")
    return Location(parts.netloc, parts.path.strip("/"), parts.scheme)


@dataclass(frozen=True)
class StoredObject:
    """An object's size in bytes, and a tag that changes with its content."""

    size: int
    tag: str


class Store(Protocol):
    """Reading one bucket."""

    def list(self, prefix: str) -> dict[str, StoredObject]:
        """Objects by key, for every key that begins with `prefix`."""

    def read(self, key: str, at_most_bytes: int) -> bytes | None:
        """A small object, or None if there is none; raises `MirrorError` if it is larger than `at_most_bytes`."""

    def stream(self, key: str, offset: int, length: int, tag: str | None = None) -> Iterator[bytes]:
        """Bytes of a range, in pieces; fails if the object no longer has `tag`."""


def client(
    *, signed: bool = True, credentials: Mapping[str, str] | None = None, session: Any = boto3, **config: Any
) -> Any:
    """An S3 client from the environment: its role or keys, region, and `AWS_ENDPOINT_URL` when set.

    `credentials` (boto3's `aws_access_key_id` and so on) replace those of the environment, and so do a `session`'s
    profile and region; `config` is botocore's.
    """
    from botocore import UNSIGNED

    patient: dict[str, Any] = {
        "retries": {"mode": "standard", "max_attempts": 6},
        "max_pool_connections": 2 * max(PARALLEL, READERS),
        "connect_timeout": 10,
        "read_timeout": 60,
        "signature_version": None if signed else UNSIGNED,
    }
    return session.client("s3", **(credentials or {}), config=Config(**(patient | config)))


@contextmanager
def plain_errors(what: str, service: str = "S3", fix: str | None = None) -> Iterator[None]:
    """Turns the SDK's errors into a `MirrorError` that says what was tried and what to check.

    `fix` is what to do when `service` refuses; that of S3 depends on what it says.
    """
    try:
        yield
    except NoCredentialsError:
        raise MirrorError(f"{what}: no AWS credentials; give the node's role access or set AWS_PROFILE") from None
    except ClientError as error:
        code = _code(error)
        raise MirrorError(
            f"{what}: {service} returned {code}; {fix or _WAY_OUT.get(code, 'check the bucket and its policy')}"
        ) from None
    except BotoCoreError as error:
        text = str(error).splitlines()[0][:200]
        raise MirrorError(f"{what}: {text}; check the network and AWS_ENDPOINT_URL") from None


_WAY_OUT = {
    "NoSuchBucket": "create the bucket (`pulumi up`) or correct the bucket's name",
    "AccessDenied": "allow the pod's or node's role to list and read the bucket, and a mirror Job's to write it",
    "PreconditionFailed": "an object changed while it was read; run again",
    "InvalidAccessKeyId": "correct the AWS credentials in the environment",
    "SignatureDoesNotMatch": "correct the AWS credentials in the environment",
    "ExpiredToken": "renew the AWS credentials in the environment",
}


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


class S3Store:
    """A bucket of S3."""

    def __init__(self, bucket: str, s3: Any = None) -> None:
        self.bucket, self.s3 = bucket, s3 or client()

    def list(self, prefix: str) -> dict[str, StoredObject]:
        """See `Store`."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        entries = (entry for page in pages for entry in page.get("Contents", ()))
        return {entry["Key"]: StoredObject(entry["Size"], entry["ETag"]) for entry in entries}

    def read(self, key: str, at_most_bytes: int) -> bytes | None:
        """See `Store`.

        S3 says 404 of an absent object only to who may list the whole bucket, else 403. Our roles may list their own
        prefixes, so the listing tells an absent object from one that they may not read.
        https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html ("Permissions")
        """
        try:
            answer = self.s3.get_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if _code(error) == "NoSuchKey" or (_code(error) == "AccessDenied" and key not in self.list(key)):
                return None
            raise
        with answer["Body"] as body:
            if answer["ContentLength"] > at_most_bytes:
                raise too_large(f"s3://{self.bucket}/{key}", answer["ContentLength"])
            data: bytes = body.read()
            return data

    def stream(self, key: str, offset: int, length: int, tag: str | None = None) -> Iterator[bytes]:
        """See `Store`."""
        condition: Mapping[str, str] = {"IfMatch": tag} if tag else {}
        wanted = f"bytes={offset}-{offset + length - 1}"
        answer = self.s3.get_object(Bucket=self.bucket, Key=key, Range=wanted, **condition)
        with answer["Body"] as body:
            while piece := body.read(PIECE_BYTES):
                yield piece


def too_large(what: str, size: int) -> MirrorError:
    """The error for an object that should be small and is not."""
    return MirrorError(f"{what} has {size} bytes, which no manifest has; fill the mirror again")
