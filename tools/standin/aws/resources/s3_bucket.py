"""`aws:s3/bucket:Bucket`: the bucket itself; its settings are separate resources in `s3_settings.py`."""

from __future__ import annotations

from typing import Any

from modelfleet.infra.provider import UNKNOWN, Autoname, Call, Made, Props, Refused, ResourceDef
from tools.standin.aws.session import Aws, error_code

# https://docs.aws.amazon.com/general/latest/gr/s3.html (2026-11): the zone of S3 website records per region.
_HOSTED_ZONES = {"us-east-1": "Z3AQBSTGFYJSTF", "us-east-2": "Z2O1EMRO9K5GLX", "us-west-2": "Z3BJ6K6RIION7M"}


def _client(call: Call[Aws], props: Props) -> Any:
    return call.session.client("s3", props.get("region"))


def _outputs(call: Call[Aws], name: str, inputs: Props) -> Props:
    region = inputs.get("region") or call.session.region
    return {
        "arn": f"arn:aws:s3:::{name}",
        "bucket": name,
        "bucketDomainName": f"{name}.s3.amazonaws.com",
        "bucketRegion": region,
        "bucketRegionalDomainName": f"{name}.s3.{region}.amazonaws.com",
        "hostedZoneId": _HOSTED_ZONES.get(region, ""),
        "region": region,
        "tagsAll": call.session.tags(inputs),
    }


def _put_tags(s3: Any, name: str, tags: dict[str, str]) -> None:
    if tags:
        s3.put_bucket_tagging(
            Bucket=name, Tagging={"TagSet": [{"Key": key, "Value": value} for key, value in tags.items()]}
        )
    else:
        s3.delete_bucket_tagging(Bucket=name)


def _create(call: Call[Aws], inputs: Props) -> Made:
    name, s3 = inputs["bucket"], _client(call, inputs)
    region = inputs.get("region") or call.session.region
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        s3.create_bucket(Bucket=name, ObjectLockEnabledForBucket=bool(inputs.get("objectLockEnabled")), **where)
    except Exception as error:
        # From a run that was killed between the call and the engine's record of it: it is ours, so take it over.
        if error_code(error) != "BucketAlreadyOwnedByYou":
            raise
        call.note(f"bucket {name} already exists and is ours, so it is taken over")
    if tags := call.session.tags(inputs):
        _put_tags(s3, name, tags)
    return Made(name, _outputs(call, name, inputs))


def _read(call: Call[Aws], name: str, state: Props) -> Props | None:
    s3 = _client(call, state)
    try:
        s3.head_bucket(Bucket=name)
    except Exception as error:
        if error_code(error) in ("404", "NoSuchBucket"):
            return None
        raise
    try:
        found = {item["Key"]: item["Value"] for item in s3.get_bucket_tagging(Bucket=name)["TagSet"]}
    except Exception as error:
        if error_code(error) != "NoSuchTagSet":
            raise
        found = {}
    own = state.get("tags") or {}
    defaults = {key for key, value in call.session.default_tags.items() if key not in own and found.get(key) == value}
    live = {**state, **_outputs(call, name, state), "tagsAll": found}
    tags = {key: value for key, value in found.items() if key not in defaults}
    live.pop("tags", None)
    return {**live, "tags": tags} if tags or own else live


def _update(call: Call[Aws], name: str, state: Props, inputs: Props) -> Props:
    if call.session.tags(inputs) != state.get("tagsAll"):
        _put_tags(_client(call, inputs), name, call.session.tags(inputs))
    return _outputs(call, name, inputs)


def _delete(call: Call[Aws], name: str, state: Props) -> None:
    s3 = _client(call, state)
    try:
        if state.get("forceDestroy"):
            _empty(s3, name)
        s3.delete_bucket(Bucket=name)
    except Exception as error:
        if error_code(error) == "BucketNotEmpty":
            raise Refused(f"bucket {name} still holds objects; empty it or set forceDestroy") from error
        if error_code(error) != "NoSuchBucket":
            raise


def _empty(s3: Any, name: str) -> None:
    """Deletes every object, version, delete marker and unfinished upload."""
    markers = _versions(s3, name, "DeleteMarkers")
    if markers:
        # With versioning suspended, moto drops a whole key and fails on the delete markers among its versions.
        s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    for entries in (_versions(s3, name, "Versions"), markers):
        for start in range(0, len(entries), 1000):
            objects = [{"Key": key, "VersionId": version} for key, version in entries[start : start + 1000]]
            failed = s3.delete_objects(Bucket=name, Delete={"Objects": objects, "Quiet": True}).get("Errors")
            if failed:
                raise Refused(f"bucket {name}: could not delete {failed[0]['Key']}: {failed[0].get('Message')}")
    for page in s3.get_paginator("list_multipart_uploads").paginate(Bucket=name):
        for upload in page.get("Uploads", ()):
            s3.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])


def _versions(s3: Any, name: str, kind: str) -> list[tuple[str, str]]:
    """All (key, version id) of one kind: `Versions` or `DeleteMarkers`."""
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=name)
    return [(item["Key"], item["VersionId"]) for page in pages for item in page.get(kind, ())]


def _check(inputs: Props) -> list[tuple[str, str]]:
    name = inputs.get("bucket")
    if name in (None, UNKNOWN):
        return []
    if not isinstance(name, str) or not 3 <= len(name) <= 63 or name != name.lower():
        return [("bucket", f"must have 3 to 63 characters, all lower-case, found '{name}'")]
    return []


BUCKET = ResourceDef(
    token="aws:s3/bucket:Bucket",
    inputs=frozenset({"bucket", "forceDestroy", "objectLockEnabled", "region", "tags"}),
    outputs=frozenset(
        {
            "arn",
            "bucketDomainName",
            "bucketRegion",
            "bucketRegionalDomainName",
            "hostedZoneId",
            "region",
            "tagsAll",
        }
    ),
    force_new=frozenset({"bucket", "objectLockEnabled", "region"}),
    autoname=Autoname("bucket", max_length=63, lower=True),
    create=_create,
    read=_read,
    update=_update,
    delete=_delete,
    check=_check,
    preview=lambda inputs: (
        {"arn": f"arn:aws:s3:::{inputs['bucket']}"} if inputs.get("bucket") not in (None, UNKNOWN) else {}
    ),
)

RESOURCES = (BUCKET,)
