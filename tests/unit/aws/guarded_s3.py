"""moto's S3 behind a role: each call of boto3 is judged by the role's documents, as S3 would, and recorded.

S3 is imitated where moto knows no IAM: a call without a right is AccessDenied, and so is reading an absent object for
who may not list the whole bucket. An operation that `s3-actions.csv` does not know raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from modelfleet.serving.config.catalogs import csv_rows
from tools.cloud.evaluator import allowed

TABLE = {row["operation"]: row for row in csv_rows(Path(__file__).with_name("s3-actions.csv"))}


class Role:
    """One role, with the actions that its calls have needed so far."""

    def __init__(self, statements: Sequence[Mapping[str, Any]], *, key_arn: str, region: str) -> None:
        self.statements, self._key_arn = list(statements), key_arn
        self._through_s3 = {"kms:ViaService": f"s3.{region}.amazonaws.com"}
        self.used: set[str] = set()

    @property
    def granted(self) -> set[str]:
        """Every action that its documents name."""
        return {action for statement in self.statements for action in _list(statement["Action"])}

    def without(self, action: str) -> Role:
        """The same role with one action less."""
        left = [{**one, "Action": [a for a in _list(one["Action"]) if a != action]} for one in self.statements]
        poorer = Role(left, key_arn=self._key_arn, region="")
        poorer._through_s3 = self._through_s3
        return poorer

    def judge(self, operation: str, params: Mapping[str, Any]) -> None:
        """Raises AccessDenied unless the role may call this."""
        row = TABLE[operation]
        for resource, context in _resources(row["resource"], params):
            self._need(operation, row["action"], resource, context)
        for action in row["key_actions"].split():
            self._need(operation, action, self._key_arn, self._through_s3)

    def sees_the_bucket(self, bucket: str) -> bool:
        """Whether S3 would tell the role that an object does not exist."""
        return allowed(self.statements, "s3:ListBucket", f"arn:aws:s3:::{bucket}")

    def _need(self, operation: str, action: str, resource: str, context: Mapping[str, str]) -> None:
        if not allowed(self.statements, action, resource, context):
            message = f"not authorized to perform {action} on {resource} with {dict(context)}"
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": message}}, operation)
        self.used.add(action)


@contextmanager
def acting_as(role: Role) -> Iterator[None]:
    """Every client that boto3 makes in the block acts as `role`."""

    def before(params: dict[str, Any], model: Any, **more: Any) -> None:
        role.judge(model.name, params)

    def after(parsed: dict[str, Any], context: dict[str, Any], **more: Any) -> None:
        bucket = context["input_params"]["Bucket"]
        if parsed.get("Error", {}).get("Code") == "NoSuchKey" and not role.sees_the_bucket(bucket):
            parsed["Error"]["Code"] = "AccessDenied"

    boto3.setup_default_session()
    events = boto3.DEFAULT_SESSION.events
    events.register("provide-client-params.s3.*", before)
    events.register("after-call.s3.GetObject", after)
    try:
        yield
    finally:
        boto3.setup_default_session()


def _resources(kind: str, params: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    bucket = f"arn:aws:s3:::{params['Bucket']}"
    if kind == "object":
        yield f"{bucket}/{params['Key']}", {}
    elif kind == "objects":
        for one in params["Delete"]["Objects"]:
            yield f"{bucket}/{one['Key']}", {}
    elif kind == "bucket-prefix":
        yield bucket, {"s3:prefix": params["Prefix"]} if "Prefix" in params else {}
    else:
        yield bucket, {}


def _list(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
