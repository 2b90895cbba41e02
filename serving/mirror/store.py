"""Object storage behind a mirror: one S3 client, its errors turned into one line with a way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from serving.errors import MirrorError

PARALLEL = 8
"""Transfers at a time; with chunks of 32 MiB this bounds memory to a quarter of a GiB."""


@dataclass(frozen=True)
class Location:
    """`s3://bucket/prefix`; the prefix has no slash at either end."""

    bucket: str
    prefix: str

    def key(self, *parts: str) -> str:
        """The object key of `parts` below the prefix."""
        return "/".join([*([self.prefix] if self.prefix else []), *parts])

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def parse_uri(uri: str) -> Location:
    """The location that an s3:// URI names; raises `MirrorError` for another form."""
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise MirrorError(f"found mirror {uri!r}; expected s3://bucket/prefix")
    return Location(parts.netloc, parts.path.strip("/"))


def client(*, signed: bool = True) -> Any:
    """An S3 client from the environment: its role or keys, region, and `AWS_ENDPOINT_URL` when set."""
    from botocore import UNSIGNED

    return boto3.client(
        "s3",
        config=Config(
            retries={"mode": "standard", "max_attempts": 6},
            max_pool_connections=2 * PARALLEL,
            connect_timeout=10,
            read_timeout=60,
            signature_version=None if signed else UNSIGNED,
        ),
    )


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turns the SDK's errors into a `MirrorError` that says what was tried and what to look at."""
    try:
        yield
    except NoCredentialsError:
        raise MirrorError(f"{what}: no AWS credentials; give the node's role access, or set AWS_PROFILE") from None
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown")
        raise MirrorError(
            f"{what}: S3 answered {code}; {_WAY_OUT.get(code, 'look at the bucket and its policy')}"
        ) from None
    except BotoCoreError as error:
        text = str(error).splitlines()[0][:200]
        raise MirrorError(f"{what}: {text}; check the network and AWS_ENDPOINT_URL") from None


_WAY_OUT = {
    "NoSuchBucket": "create the bucket (`pulumi up`) or correct the bucket's name",
    "AccessDenied": "let the node's role list and read the bucket",
    "403": "let the node's role list and read the bucket",
    "InvalidAccessKeyId": "correct the AWS credentials in the environment",
    "SignatureDoesNotMatch": "correct the AWS credentials in the environment",
    "ExpiredToken": "renew the AWS credentials in the environment",
}


def is_missing(error: ClientError) -> bool:
    """Whether S3 says that the object is not there."""
    return error.response.get("Error", {}).get("Code") in {"404", "NoSuchKey", "NotFound"}


def sizes_below(s3: Any, location: Location, *parts: str) -> dict[str, int]:
    """Object key → size in bytes for everything below `parts`."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=location.bucket, Prefix=location.key(*parts) + "/")
    return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", ())}
