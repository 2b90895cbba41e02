"""State that moto has no API for: one JSON object per entry, in a bucket of the emulator itself.

So the entries live exactly as long as everything else in the emulator, and a test can read them with boto3. Before a
call touches the table, it is checked against botocore's own model of the operation. A parameter that AWS does not know,
a missing one or a wrong type is refused with botocore's message.

    validated("eks", "CreateAddon", {"clusterName": "c", "addonName": "coredns"})
    table = Table(session)
    table.put("eks/addons/c/coredns", {...})
"""

from __future__ import annotations

import json
import threading
from functools import cache
from typing import Any

import botocore.session
from botocore.exceptions import ClientError
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from modelfleet.infra.provider import Props, Refused
from tools.standin.aws.session import Aws, error_code

BUCKET = "standin-table"
"""The emulator's bucket with the entries; it belongs to the stand-in, not to a stack."""

_ABSENT = frozenset({"NoSuchKey", "NoSuchBucket", "404"})


class Absent(LookupError):
    """The table has no such entry."""


class Table:
    """Entries by slash-separated key, in the emulator that `session` uses."""

    _lock = threading.Lock()

    def __init__(self, session: Aws) -> None:
        self._session = session
        self._s3 = session.client("s3", "us-east-1")

    def call(self, service: str, operation: str, params: Props) -> None:
        """Validates a call that reaches only the table, and counts it like one that reaches the emulator."""
        validated(service, operation, params)
        self._session.before_call(service, operation, repr(sorted(params.items(), key=str)))

    def put(self, key: str, value: Props) -> None:
        """Writes an entry."""
        body = json.dumps(value).encode()
        try:
            self._s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        except ClientError as error:
            if error_code(error) != "NoSuchBucket":
                raise
            with self._lock:
                self._s3.create_bucket(Bucket=BUCKET)  # idempotent for its owner in us-east-1
            self._s3.put_object(Bucket=BUCKET, Key=key, Body=body)

    def get(self, key: str) -> Props:
        """Returns an entry; raises `Absent` if there is none."""
        try:
            body = self._s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        except ClientError as error:
            if error_code(error) in _ABSENT:
                raise Absent(key) from None
            raise
        found: Props = json.loads(body)
        return found

    def find(self, key: str) -> Props | None:
        """Returns an entry, or None."""
        try:
            return self.get(key)
        except Absent:
            return None

    def delete(self, key: str) -> None:
        """Deletes an entry, if it exists."""
        try:
            self._s3.delete_object(Bucket=BUCKET, Key=key)
        except ClientError as error:
            if error_code(error) not in _ABSENT:
                raise

    def keys(self, prefix: str) -> list[str]:
        """Returns the keys of entries below a prefix."""
        try:
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
            return [item["Key"] for page in pages for item in page.get("Contents", ())]
        except ClientError as error:
            if error_code(error) in _ABSENT:
                return []
            raise


@cache
def service_model(service: str) -> ServiceModel:
    """botocore's model of a service."""
    return botocore.session.get_session().get_service_model(service)


def validated(service: str, operation: str, params: Props) -> Props:
    """Returns `params` unchanged; raises `Refused` with botocore's report if the operation would not take them."""
    shape: Any = service_model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(params, shape)
    if report.has_errors():
        raise Refused(f"{operation}: {report.generate_report()}")
    return params
