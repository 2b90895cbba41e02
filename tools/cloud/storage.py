"""S3's own rules of who may: keys of KMS behind objects, absent objects, and deletions in bulk.

The source of each is the API reference of the operation that the comment names; botocore's models contain it.
https://docs.aws.amazon.com/AmazonS3/latest/API/
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from moto.s3.exceptions import S3ClientError
from moto.s3.models import S3Backend, s3_backends

from tools.cloud.actions import Need
from tools.cloud.answers import not_authorized
from tools.cloud.callers import ACCOUNT, PARTITION, Caller
from tools.cloud.judge import Judge, key_arn
from tools.cloud.wire import Call

#: KMS actions by operation, on the key that the object gets or has. CreateMultipartUpload: "the requester must have
#: permission to the kms:Decrypt and kms:GenerateDataKey actions on the key"; ListParts: kms:Decrypt;
#: CompleteMultipartUpload with a checksum: kms:Decrypt.
_ON_NEW = {
    "PutObject": ("kms:GenerateDataKey",),
    "CreateMultipartUpload": ("kms:GenerateDataKey",),
    "CopyObject": ("kms:GenerateDataKey",),
}
_ON_UPLOAD = {
    "UploadPart": ("kms:Decrypt",),
    "CompleteMultipartUpload": ("kms:Decrypt",),
    "ListParts": ("kms:Decrypt",),
}
_ON_OLD = {"GetObject": ("kms:Decrypt",), "HeadObject": ("kms:Decrypt",)}


def require_storage(judge: Judge, caller: Caller, call: Call) -> None:
    """Raises `Error` for what S3 asks beyond the actions of the table."""
    _require_key(judge, caller, call)
    if call.operation in ("GetObject", "HeadObject", "GetObjectTagging"):
        _require_sight_of_absent(judge, caller, call)


def _backend() -> S3Backend:
    return s3_backends[ACCOUNT][PARTITION]


def _require_key(judge: Judge, caller: Caller, call: Call) -> None:
    """S3 uses the key in the caller's name, and says so in `kms:ViaService`.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html
    """
    actions = _ON_NEW.get(call.operation) or _ON_UPLOAD.get(call.operation) or _ON_OLD.get(call.operation) or ()
    key = _key_of(call) if actions else None
    if key is None:
        return
    arn = key_arn(key, _region_of(call.params["Bucket"]))
    via = {"kms:ViaService": f"s3.{_region_of(call.params['Bucket'])}.amazonaws.com", "kms:CallerAccount": ACCOUNT}
    for action in actions:
        judge.require(caller, call, Need(action, arn), via)


def _key_of(call: Call) -> str | None:
    """The KMS key that the object gets (of the request, else the bucket's default) or has; None without one."""
    bucket, name = call.params["Bucket"], str(call.params["Key"])
    try:
        if call.operation in _ON_NEW:
            return _key_of_new(call, bucket)
        if call.operation in _ON_UPLOAD:
            upload = _backend().get_bucket(bucket).multiparts.get(str(call.params.get("UploadId")))
            return (
                str(upload.kms_key_id or _default(bucket))
                if upload and (upload.kms_key_id or _default(bucket))
                else None
            )
        found = _backend().get_object(bucket, name)
    except S3ClientError:  # no such bucket: S3 answers that itself
        return None
    return str(found.kms_key_id) if found is not None and found.kms_key_id else None


def _key_of_new(call: Call, bucket: str) -> str | None:
    if call.params.get("SSEKMSKeyId"):
        return str(call.params["SSEKMSKeyId"])
    if call.params.get("ServerSideEncryption") == "AES256":
        return None
    return _default(bucket)


def _default(bucket: str) -> str | None:
    """The key of a bucket's default encryption."""
    encryption = _backend().get_bucket(bucket).encryption
    rule: Any = (encryption or {}).get("Rule") or {}
    rule = rule[0] if isinstance(rule, list) else rule
    found = (rule.get("ApplyServerSideEncryptionByDefault") or {}).get("KMSMasterKeyID")
    return str(found) if found else None


def _region_of(bucket: str) -> str:
    try:
        return str(_backend().get_bucket(bucket).region_name)
    except S3ClientError:
        return "us-east-1"


def _require_sight_of_absent(judge: Judge, caller: Caller, call: Call) -> None:
    """HeadObject, GetObject: "If you don't have the s3:ListBucket permission, Amazon S3 returns" 403, not 404.

    The request has no `s3:prefix`, so a ListBucket that is allowed for some prefixes only does not count.
    """
    try:
        absent = _backend().get_object(call.params["Bucket"], str(call.params["Key"])) is None
    except S3ClientError:
        return
    if absent:
        judge.require(caller, call, Need("s3:ListBucket", f"arn:{PARTITION}:s3:::{call.params['Bucket']}"))


# --- DeleteObjects ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deletion:
    """A bulk deletion: what may be deleted as a new body, and what may not as parts of the answer."""

    body: bytes | None
    errors: bytes

    def answer(self, of_the_rest: bytes) -> bytes:
        """The whole answer: S3 answers 200 and names each key that it refused."""
        return re.sub(rb"</DeleteResult>|<DeleteResult[^>]*/>", self.errors + b"</DeleteResult>", of_the_rest, count=1)


def judged_deletion(judge: Judge, caller: Caller, call: Call) -> Deletion:
    """DeleteObjects asks for s3:DeleteObject (with a version: s3:DeleteObjectVersion) on each key."""
    kept, errors = [], []
    for item in call.params["Delete"]["Objects"]:
        version = bool(item.get("VersionId"))
        action = "s3:DeleteObjectVersion" if version else "s3:DeleteObject"
        need = Need(action, f"arn:{PARTITION}:s3:::{call.params['Bucket']}/{item['Key']}")
        if reason := judge.refusal(caller, call, need):
            error = not_authorized(call, caller.arn, need.action, need.resource, reason)
            parts = {"Key": item["Key"], "Code": error.code, "Message": error.message}
            errors.append(f"<Error>{''.join(_element(name, text) for name, text in parts.items())}</Error>")
        else:
            kept.append(item)
    return Deletion(
        _body(kept, quiet=bool(call.params["Delete"].get("Quiet"))) if kept else None, "".join(errors).encode()
    )


def _body(items: Iterable[Any], *, quiet: bool) -> bytes:
    objects = "".join(
        "<Object>"
        + "".join(_element(name, item[name]) for name in ("Key", "VersionId") if item.get(name))
        + "</Object>"
        for item in items
    )
    return f"<Delete>{objects}<Quiet>{str(quiet).lower()}</Quiet></Delete>".encode()


def _element(name: str, text: object) -> str:
    return f"<{name}>{escape(str(text))}</{name}>"
