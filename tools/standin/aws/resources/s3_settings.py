"""Bucket settings that are separate resources: versioning, encryption, access, lifecycle, policy.

Each has the bucket's name as its id, and one call each to put, read and remove it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modelfleet.infra.provider import UNKNOWN, Call, Made, NotDone, Props, ResourceDef
from tools.standin.aws.session import Aws, error_code

_GONE = frozenset({"404", "NoSuchBucket"})


@dataclass(frozen=True)
class _Setting:
    """How one setting is written, read (None: not set) and removed with an S3 client."""

    kind: str
    keys: tuple[str, ...]
    put: Callable[[Any, str, Props], None]
    get: Callable[[Any, str, Props], Props | None]
    remove: Callable[[Any, str], None]
    absent: frozenset[str]
    """AWS's error codes for "not set"."""


def _client(call: Call[Aws], props: Props) -> Any:
    return call.session.client("s3", props.get("region"))


def _definition(setting: _Setting, **more: Any) -> ResourceDef[Aws]:
    token = f"aws:s3/{setting.kind[0].lower()}{setting.kind[1:]}:{setting.kind}"

    def create(call: Call[Aws], inputs: Props) -> Made:
        setting.put(_client(call, inputs), inputs["bucket"], inputs)
        return Made(inputs["bucket"], {"region": inputs.get("region") or call.session.region})

    def read(call: Call[Aws], id: str, state: Props) -> Props | None:
        try:
            live = setting.get(_client(call, state), id, state)
        except Exception as error:
            if error_code(error) in _GONE | setting.absent:
                return None
            raise
        return None if live is None else {**state, "bucket": id, "region": call.session.region, **live}

    def update(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
        setting.put(_client(call, inputs), id, inputs)
        return {"region": inputs.get("region") or call.session.region}

    def delete(call: Call[Aws], id: str, state: Props) -> None:
        try:
            setting.remove(_client(call, state), id)
        except Exception as error:
            if error_code(error) not in _GONE | setting.absent:
                raise

    return ResourceDef(
        token=token,
        create=create,
        read=read,
        update=update,
        delete=delete,
        inputs=frozenset({"bucket", "region", *setting.keys}),
        required=frozenset({"bucket"}),
        outputs=frozenset({"region"}),
        force_new=frozenset({"bucket", "region"}),
        **more,
    )


# --- versioning ------------------------------------------------------------------------------------------


def _put_versioning(s3: Any, bucket: str, inputs: Props) -> None:
    wanted = inputs["versioningConfiguration"]
    if wanted.get("mfaDelete") not in (None, "Disabled"):
        raise NotDone("aws:s3/bucketVersioning:BucketVersioning: versioningConfiguration.mfaDelete")
    if wanted["status"] != "Disabled":  # a bucket that never had versions has no status to set
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": wanted["status"]})


def _get_versioning(s3: Any, bucket: str, state: Props) -> Props:
    return {"versioningConfiguration": {"status": s3.get_bucket_versioning(Bucket=bucket).get("Status", "Disabled")}}


def _remove_versioning(s3: Any, bucket: str) -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})


# --- encryption ------------------------------------------------------------------------------------------


def _put_encryption(s3: Any, bucket: str, inputs: Props) -> None:
    rules = []
    for rule in inputs["rules"]:
        unknown = sorted(set(rule) - {"applyServerSideEncryptionByDefault", "bucketKeyEnabled"})
        if unknown:
            raise NotDone(f"bucket encryption: rules[].{unknown[0]}")
        by_default = rule.get("applyServerSideEncryptionByDefault") or {"sseAlgorithm": "AES256"}
        wanted = {"SSEAlgorithm": by_default["sseAlgorithm"]}
        if by_default.get("kmsMasterKeyId"):
            wanted["KMSMasterKeyID"] = by_default["kmsMasterKeyId"]
        rules.append(
            {
                "ApplyServerSideEncryptionByDefault": wanted,
                "BucketKeyEnabled": bool(rule.get("bucketKeyEnabled")),
            }
        )
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": rules})


def _get_encryption(s3: Any, bucket: str, state: Props) -> Props:
    found = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    rules: list[Props] = []
    for rule in found:
        by_default = rule["ApplyServerSideEncryptionByDefault"]
        entry = {"sseAlgorithm": by_default["SSEAlgorithm"]}
        if by_default.get("KMSMasterKeyID"):
            entry["kmsMasterKeyId"] = by_default["KMSMasterKeyID"]
        rules.append(
            {
                "applyServerSideEncryptionByDefault": entry,
                "bucketKeyEnabled": bool(rule.get("BucketKeyEnabled")),
            }
        )
    return {"rules": rules}


# --- public access and ownership -------------------------------------------------------------------------

_ACCESS = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")


def _capital(key: str) -> str:
    return key[0].upper() + key[1:]


def _put_access(s3: Any, bucket: str, inputs: Props) -> None:
    s3.put_public_access_block(
        Bucket=bucket,
        PublicAccessBlockConfiguration={_capital(key): bool(inputs.get(key)) for key in _ACCESS},
    )


def _get_access(s3: Any, bucket: str, state: Props) -> Props:
    found = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    return {key: bool(found.get(_capital(key))) for key in _ACCESS}


def _put_ownership(s3: Any, bucket: str, inputs: Props) -> None:
    rule = {"ObjectOwnership": inputs["rule"]["objectOwnership"]}
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls={"Rules": [rule]})


def _get_ownership(s3: Any, bucket: str, state: Props) -> Props:
    rules = s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]["Rules"]
    return {"rule": {"objectOwnership": rules[0]["ObjectOwnership"]}}


# --- lifecycle -------------------------------------------------------------------------------------------


def _service_form(value: Any, key: str = "") -> Any:
    """Pulumi's camelCase rule as S3's: capitalised keys, `ID`, tags as a list."""
    if key == "tags":
        return [{"Key": name, "Value": text} for name, text in value.items()]
    if isinstance(value, dict):
        return {
            "ID" if name == "id" else _capital(name): _service_form(item, name)
            for name, item in value.items()
            if item is not None
        }
    return [_service_form(item) for item in value] if isinstance(value, list) else value


def _pulumi_form(value: Any, key: str = "") -> Any:
    """The inverse of `_service_form`."""
    if key == "Tags":
        return {item["Key"]: item["Value"] for item in value}
    if isinstance(value, dict):
        return {
            "id" if name == "ID" else name[0].lower() + name[1:]: _pulumi_form(item, name)
            for name, item in value.items()
        }
    return [_pulumi_form(item) for item in value] if isinstance(value, list) else value


def _put_lifecycle(s3: Any, bucket: str, inputs: Props) -> None:
    rules = [_service_form(rule) for rule in inputs["rules"]]
    for rule in rules:
        if "Prefix" not in rule:
            rule.setdefault("Filter", {"Prefix": ""})
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})


def _get_lifecycle(s3: Any, bucket: str, state: Props) -> Props:
    found = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    rules = []
    for rule in found:
        form = _pulumi_form(rule)
        if form.get("filter") in ({"prefix": ""}, {}):
            form.pop("filter")  # S3's form of "no filter"; `_same_rules` treats all three alike
        rules.append(form)
    return {"rules": rules}


def _bare_rules(rules: Any) -> Any:
    if not isinstance(rules, list):
        return rules
    bare = [
        {key: item for key, item in rule.items() if not (key == "filter" and item in ({}, {"prefix": ""}))}
        for rule in rules
    ]
    return sorted(bare, key=lambda rule: str(rule.get("id")))


def _same_rules(old: Any, new: Any) -> bool:
    return bool(_bare_rules(old) == _bare_rules(new))


# --- policy ----------------------------------------------------------------------------------------------

_NOWHERE = "arn:aws:s3:::conditions-are-not-evaluated-by-the-emulator"


def emulated_policy(policy: str) -> str:
    """`policy` in a form for the emulator: statements with a Condition get a resource that does not exist.

    moto ignores conditions, so "deny without TLS" would deny every call.
    """
    document = json.loads(policy)
    statements = document.get("Statement", [])
    for statement in [statements] if isinstance(statements, dict) else statements:
        if "Condition" in statement:
            statement["Resource"] = _NOWHERE
    return json.dumps(document, sort_keys=True)


def same_json(old: Any, new: Any) -> bool:
    """Whether two JSON texts are equal; spacing and key order do not matter."""
    if UNKNOWN in (old, new):
        return bool(old == new)
    try:
        return bool(json.loads(old) == json.loads(new))
    except (TypeError, ValueError):
        return bool(old == new)


def _policy_fault(inputs: Props) -> list[tuple[str, str]]:
    text = inputs.get("policy")
    if text is None or text == UNKNOWN:
        return []
    try:
        json.loads(text)
    except (TypeError, ValueError) as error:
        return [("policy", f"must be JSON text: {error}")]
    return []


def _put_policy(s3: Any, bucket: str, inputs: Props) -> None:
    s3.put_bucket_policy(Bucket=bucket, Policy=emulated_policy(inputs["policy"]))


def _get_policy(s3: Any, bucket: str, state: Props) -> Props:
    found = s3.get_bucket_policy(Bucket=bucket)["Policy"]
    known = state.get("policy")
    return {"policy": known if known and same_json(emulated_policy(known), found) else found}


RESOURCES = (
    _definition(
        _Setting(
            "BucketVersioning",
            ("versioningConfiguration",),
            _put_versioning,
            _get_versioning,
            _remove_versioning,
            frozenset(),
        )
    ),
    _definition(
        _Setting(
            "BucketServerSideEncryptionConfiguration",
            ("rules",),
            _put_encryption,
            _get_encryption,
            lambda s3, bucket: s3.delete_bucket_encryption(Bucket=bucket),
            frozenset({"ServerSideEncryptionConfigurationNotFoundError"}),
        )
    ),
    _definition(
        _Setting(
            "BucketPublicAccessBlock",
            _ACCESS,
            _put_access,
            _get_access,
            lambda s3, bucket: s3.delete_public_access_block(Bucket=bucket),
            frozenset({"NoSuchPublicAccessBlockConfiguration"}),
        )
    ),
    _definition(
        _Setting(
            "BucketOwnershipControls",
            ("rule",),
            _put_ownership,
            _get_ownership,
            lambda s3, bucket: s3.delete_bucket_ownership_controls(Bucket=bucket),
            frozenset({"OwnershipControlsNotFoundError"}),
        )
    ),
    _definition(
        _Setting(
            "BucketLifecycleConfiguration",
            ("rules",),
            _put_lifecycle,
            _get_lifecycle,
            lambda s3, bucket: s3.delete_bucket_lifecycle(Bucket=bucket),
            frozenset({"NoSuchLifecycleConfiguration"}),
        ),
        same={"rules": _same_rules},
    ),
    _definition(
        _Setting(
            "BucketPolicy",
            ("policy",),
            _put_policy,
            _get_policy,
            lambda s3, bucket: s3.delete_bucket_policy(Bucket=bucket),
            frozenset({"NoSuchBucketPolicy"}),
        ),
        same={"policy": same_json},
        check=_policy_fault,
    ),
)
