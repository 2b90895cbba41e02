"""`aws:s3/bucketObjectv2:BucketObjectv2`: one object from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi

from modelfleet.infra.provider import Call, Made, NotDone, Props, Refused, ResourceDef
from tools.standin.aws.making import as_tags, client, from_tags, live_tags, region, unless_absent
from tools.standin.aws.session import Aws

#: Of an object.
MOST_TAGS = 10
_TOKEN = "aws:s3/bucketObjectv2:BucketObjectv2"


def _body(source: Any) -> bytes:
    if isinstance(source, pulumi.FileAsset):
        return Path(source.path).read_bytes()
    if isinstance(source, pulumi.StringAsset):
        return str(source.text).encode()
    raise NotDone(f"{_TOKEN}: input 'source' of type {type(source).__name__}")


def _put(call: Call[Aws], inputs: Props) -> Props:
    body = _body(inputs["source"])
    s3 = client(call, "s3", inputs)
    more = {"ContentType": inputs["contentType"]} if inputs.get("contentType") else {}
    tags = _tags(call, inputs)
    answer = s3.put_object(Bucket=inputs["bucket"], Key=inputs["key"], Body=body, **more)
    if tags:
        s3.put_object_tagging(Bucket=inputs["bucket"], Key=inputs["key"], Tagging={"TagSet": as_tags(tags)})
    return {
        "arn": f"arn:aws:s3:::{inputs['bucket']}/{inputs['key']}",
        "etag": answer["ETag"].strip('"'),
        "region": region(call, inputs),
        "tagsAll": tags,
        "versionId": answer.get("VersionId", ""),
    }


def _tags(call: Call[Aws], inputs: Props) -> dict[str, str]:
    """The object's tags: with `overrideProvider` the provider's defaults are others. Ten at most.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
    """
    defaults = ((inputs.get("overrideProvider") or {}).get("defaultTags") or {}).get("tags")
    tags = call.session.tags(inputs) if defaults is None else {**defaults, **(inputs.get("tags") or {})}
    if len(tags) > MOST_TAGS:
        raise Refused(f"PutObjectTagging: BadRequest: Object tags cannot be greater than {MOST_TAGS}")
    return dict(tags)


def _create(call: Call[Aws], inputs: Props) -> Made:
    return Made(f"{inputs['bucket']}/{inputs['key']}", _put(call, inputs))


def _read(call: Call[Aws], id: str, state: Props) -> Props | None:
    s3 = client(call, "s3", state)
    head = unless_absent(lambda: s3.head_object(Bucket=state["bucket"], Key=state["key"]))
    if not head:
        return None
    tags = from_tags(s3.get_object_tagging(Bucket=state["bucket"], Key=state["key"])["TagSet"])
    return {**state, "etag": head["ETag"].strip('"'), **live_tags(call, state, tags)}


def _delete(call: Call[Aws], id: str, state: Props) -> None:
    """Deletes all versions of the object, as the provider does for a versioned bucket."""
    s3 = client(call, "s3", state)
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=state["bucket"], Prefix=state["key"])
    found = unless_absent(lambda: [i for p in pages for i in (*p.get("Versions", ()), *p.get("DeleteMarkers", ()))])
    for item in found or ():
        if item["Key"] == state["key"]:
            s3.delete_object(Bucket=state["bucket"], Key=item["Key"], VersionId=item["VersionId"])


RESOURCES = (
    ResourceDef(
        token=_TOKEN,
        inputs=frozenset({"bucket", "contentType", "key", "overrideProvider", "region", "source", "tags"}),
        required=frozenset({"bucket", "key", "source"}),
        outputs=frozenset({"arn", "etag", "region", "tagsAll", "versionId"}),
        force_new=frozenset({"bucket", "key", "region"}),
        create=_create,
        read=_read,
        update=lambda call, id, state, inputs: _put(call, inputs),
        delete=_delete,
    ),
)
