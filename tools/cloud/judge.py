"""Whether a caller may do what it asks: identity policies, bucket policies, key policies and trust policies.

    judge.require(caller, call, Need("s3:PutObject", "arn:aws:s3:::bucket/key"))   # raises `Error` as AWS answers

All callers and resources are of one account. Of several policies an explicit deny wins, and one has to allow.
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic_policy-eval-basics.html
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moto.kms.models import kms_backends
from moto.s3.exceptions import MissingBucket
from moto.s3.models import s3_backends

from tools.cloud.actions import Need, needs
from tools.cloud.answers import Error, not_authorized
from tools.cloud.callers import ACCOUNT, PARTITION, Caller, statements, trust_of
from tools.cloud.evaluator import Context, Decision, Statement, as_list, decide
from tools.cloud.wire import Call

ROOT = f"arn:{PARTITION}:iam::{ACCOUNT}:root"


@dataclass(frozen=True)
class Entry:
    """One decision, as CloudTrail would keep it."""

    caller: str
    operation: str
    action: str
    resource: str
    allowed: bool


@dataclass
class Trail:
    """Every decision in order."""

    entries: list[Entry] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, entry: Entry) -> None:
        """Keeps a decision."""
        with self._lock:
            self.entries.append(entry)

    def actions(self, role: str, *, allowed: bool = True) -> set[str]:
        """IAM actions that sessions of a role used, or were refused."""
        mark = f":assumed-role/{role}/"
        return {entry.action for entry in list(self.entries) if mark in entry.caller and entry.allowed is allowed}


@dataclass
class Judge:
    """Decides, and keeps what it decided."""

    trail: Trail = field(default_factory=Trail)

    def require_all(self, caller: Caller, call: Call, more: Mapping[str, Any] | None = None) -> None:
        """Raises `Error` unless the caller has every permission that the call needs. `more` are looked-up values."""
        values = {**values_of(call), **(more or {})}
        for need in needs(call.service, call.operation, values):
            tags = values.get("resourceTags", {}).get(need.resource, {})
            self.require(caller, call, need, _resource_tags(need, tags))

    def require(self, caller: Caller, call: Call, need: Need, context: Context | None = None) -> None:
        """Raises `Error` unless the caller may do one thing; `context` adds condition keys."""
        refusal = self.refusal(caller, call, need, context)
        if refusal:
            raise not_authorized(call, caller.arn, need.action, need.resource, refusal)

    def refusal(self, caller: Caller, call: Call, need: Need, context: Context | None = None) -> str:
        """Why not, in AWS's words; "" if the caller may."""
        reason = _refusal(caller, need, {**context_of(caller, call, need), **(context or {})})
        self.trail.add(Entry(caller.arn, f"{call.service}:{call.operation}", need.action, need.resource, not reason))
        return reason


def values_of(call: Call) -> dict[str, Any]:
    """What the table of actions fills in: parameters, and where the call is made."""
    values: dict[str, Any] = {**call.params, "partition": PARTITION, "region": call.region, "account": ACCOUNT}
    if call.service == "kms":
        for name in ("KeyId", "TargetKeyId"):
            if values.get(name):
                values[name] = key_arn(str(values[name]), call.region)
    if source := values.get("CopySource"):
        values["CopySource"] = str(source).lstrip("/").partition("?")[0]
    return values


def context_of(caller: Caller, call: Call, need: Need) -> dict[str, str | Sequence[str]]:
    """The condition keys of a request.

    `s3:prefix` and its like are keys of ListBucket and ListBucketVersions only: a condition on it never holds for
    ListBucketMultipartUploads. https://docs.aws.amazon.com/AmazonS3/latest/userguide/amazon-s3-policy-keys.html
    """
    keys: dict[str, str | Sequence[str]] = {
        "aws:SecureTransport": str(call.secure).lower(),
        "aws:PrincipalAccount": ACCOUNT,
        "aws:PrincipalArn": min(caller.principals, key=lambda arn: ":sts:" in arn, default=caller.arn),
        "aws:RequestedRegion": call.region,
        "aws:ResourceAccount": ACCOUNT,
        **{f"aws:PrincipalTag/{name}": text for name, text in caller.tags.items()},
    }
    tags = _tags(call.params)
    keys |= {f"aws:RequestTag/{name}": text for name, text in tags.items()}
    if tags:
        keys["aws:TagKeys"] = sorted(tags)
    if need.action in ("s3:ListBucket", "s3:ListBucketVersions"):
        for key, parameter in (("prefix", "Prefix"), ("delimiter", "Delimiter"), ("max-keys", "MaxKeys")):
            if call.params.get(parameter) is not None:
                keys[f"s3:{key}"] = str(call.params[parameter])
    return keys


def _resource_tags(need: Need, tags: Mapping[str, str]) -> Context:
    """The condition keys of a resource's tags: the global ones, and those of EC2 and Auto Scaling."""
    service = need.action.partition(":")[0]
    return {f"{prefix}:ResourceTag/{name}": text for name, text in tags.items() for prefix in ("aws", service)}


def _tags(params: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a request, in any of the services' forms."""
    lists = [params.get("Tags"), *(spec.get("Tags") for spec in params.get("TagSpecifications") or ())]
    found = dict(params["tags"]) if isinstance(params.get("tags"), Mapping) else {}
    for pairs in lists:
        for pair in pairs if isinstance(pairs, list) else ():
            if isinstance(pair, Mapping):
                found[str(pair.get("Key", pair.get("TagKey")))] = str(pair.get("Value", pair.get("TagValue", "")))
    return found


# --- one permission --------------------------------------------------------------------------------------


def _refusal(caller: Caller, need: Need, context: Context) -> str:
    identity = decide(caller.statements, need.action, need.resource, context)
    theirs, delegated, decided = _resource_policy(caller, need, context)
    if identity is Decision.DENIED:
        return "with an explicit deny in an identity-based policy"
    if theirs is Decision.DENIED:
        return "with an explicit deny in a resource-based policy"
    if theirs is Decision.ALLOWED or (identity is Decision.ALLOWED and (delegated or not decided)):
        return ""
    kind = "resource" if decided and not delegated else "identity"
    return f"because no {kind}-based policy allows the {need.action} action"


def _resource_policy(caller: Caller, need: Need, context: Context) -> tuple[Decision, bool, bool]:
    """What the resource's policy says of the caller; whether it leaves the decision to IAM; whether it must decide.

    A bucket's policy only adds. A key's policy and a role's trust must allow the caller, or the account, which means
    "as IAM says". https://docs.aws.amazon.com/kms/latest/developerguide/key-policy-default.html
    """
    service = need.action.partition(":")[0]
    must_decide = need.action in ("sts:AssumeRole", "sts:TagSession") or (service == "kms" and ":key/" in need.resource)
    if service == "s3":
        policy = bucket_policy(need.resource)
    elif service == "kms" and must_decide:
        policy = key_policy(need.resource)
    else:
        policy = trust_of(need.resource) if must_decide else []
    named = [statement for statement in policy if _names(statement, caller.principals)]
    account = [statement for statement in policy if _names(statement, frozenset({ROOT, ACCOUNT}), anybody=False)]
    decision = decide(
        [*named, *(one for one in account if one["Effect"] == "Deny")], need.action, need.resource, context
    )
    delegated = decide(account, need.action, need.resource, context) is Decision.ALLOWED
    return decision, delegated, must_decide


def _names(statement: Statement, names: frozenset[str], *, anybody: bool = True) -> bool:
    """Whether a statement's `Principal` is one of these, or everybody."""
    principal = statement.get("Principal")
    if principal == "*":
        return anybody
    listed = {str(one) for one in as_list(principal.get("AWS", []))} if isinstance(principal, Mapping) else set()
    return bool(listed & names) or (anybody and "*" in listed)


def trusts_service(
    role_arn: str, service: str, action: str, tags: Mapping[str, str], more: Mapping[str, str] | None = None
) -> bool:
    """Whether a role's trust lets an AWS service do `sts:AssumeRole` or `sts:TagSession` with these session tags.

    `more` are other condition keys of the request, such as on whose behalf the service asks.
    """
    theirs = [
        statement
        for statement in trust_of(role_arn)
        if isinstance(statement.get("Principal"), Mapping)
        and service in as_list(statement["Principal"].get("Service", []))
    ]
    context: dict[str, str | Sequence[str]] = {f"aws:RequestTag/{name}": text for name, text in tags.items()}
    context["aws:TagKeys"] = sorted(tags)
    context |= more or {}
    return decide(theirs, action, role_arn, context) is Decision.ALLOWED


# --- policies that moto keeps ----------------------------------------------------------------------------


def bucket_policy(arn: str) -> list[Statement]:
    """The policy of the bucket that an S3 ARN names."""
    name = arn.rpartition(":::")[2].partition("/")[0]
    try:
        policy = s3_backends[ACCOUNT][PARTITION].get_bucket(name).policy
    except MissingBucket:
        return []
    return statements(policy) if policy else []


def key_arn(name: str, region: str) -> str:
    """The ARN of a KMS key by id, ARN or alias; the name itself if there is no such key."""
    backend = kms_backends[ACCOUNT][region]
    alias = backend.get_alias_name(name)
    id = backend.get_key_id_from_alias(alias) if alias.startswith("alias/") else backend.get_key_id(name)
    found = backend.keys.get(backend.get_key_id(id)) if id else None
    return str(found.arn) if found else name


def key_policy(arn: str) -> list[Statement]:
    """The policy of a KMS key. A key that AWS made itself (`alias/aws/s3`) is for the account."""
    region = arn.split(":")[3]
    found = kms_backends[ACCOUNT][region].keys.get(arn.rpartition("/")[2])
    return statements(json.loads(found.policy)) if found and found.policy else []


__all__ = ["Entry", "Error", "Judge", "Trail", "context_of", "key_arn", "trusts_service", "values_of"]
