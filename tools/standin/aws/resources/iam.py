"""Roles, policies, attachments. moto accepts any trust document, so the stand-in checks it first."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from modelfleet.infra.provider import UNKNOWN, Autoname, Call, InvokeDef, Made, Props, ResourceDef
from tools.standin.aws.making import as_tags, from_tags, live_tags, unless_absent
from tools.standin.aws.resources.s3_settings import same_json
from tools.standin.aws.session import Aws

#: IAM's limits in characters without whitespace.
#: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
_LIMITS = {"policy": 6144, "assumeRolePolicy": 2048}


#: moto answers 500 if IAM changes while another IAM call reads its tables.
ONE_AT_A_TIME = threading.RLock()


def _alone(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, made to run one call at a time."""

    @functools.wraps(work)
    def locked(*args: Any) -> Any:
        with ONE_AT_A_TIME:
            return work(*args)

    return locked


def _iam(call: Call[Aws]) -> Any:
    return call.session.client("iam", "us-east-1")


def _document(value: Any) -> str:
    """A policy document as text; boto3 decodes only some answers."""
    return unquote(value) if isinstance(value, str) else json.dumps(value)


def _faults(key: str, statement: str) -> Any:
    def check(inputs: Props) -> list[tuple[str, str]]:
        text = inputs.get(key)
        if text in (None, UNKNOWN):
            return []
        try:
            document = json.loads(text)
        except (TypeError, ValueError) as error:
            return [(key, f"MalformedPolicyDocument: {error}")]
        if len(json.dumps(document, separators=(",", ":"))) > _LIMITS[key]:
            return [(key, f"LimitExceeded: longer than {_LIMITS[key]} characters")]
        statements = document.get("Statement")
        lacking = [s for s in statements or [{}] if statement not in s or "Effect" not in s or "Action" not in s]
        return [(key, f"MalformedPolicyDocument: a statement lacks {statement}, Effect or Action")] if lacking else []

    return check


def _retag(call: Call[Aws], tag: str, name: dict[str, str], state: Props, inputs: Props) -> Props:
    wanted, had = call.session.tags(inputs), state.get("tagsAll") or {}
    iam = _iam(call)
    if gone := sorted(set(had) - set(wanted)):
        getattr(iam, f"untag_{tag}")(**name, TagKeys=gone)
    if wanted != had and wanted:
        getattr(iam, f"tag_{tag}")(**name, Tags=as_tags(wanted))
    return {"tagsAll": wanted}


# --- role ------------------------------------------------------------------------------------------------


def _create_role(call: Call[Aws], inputs: Props) -> Made:
    name = inputs["name"]
    more = {"Description": inputs["description"]} if inputs.get("description") else {}
    role = _iam(call).create_role(
        RoleName=name,
        AssumeRolePolicyDocument=inputs["assumeRolePolicy"],
        Path=inputs.get("path", "/"),
        Tags=as_tags(call.session.tags(inputs)),
        **more,
    )["Role"]
    return Made(name, {"arn": role["Arn"], "uniqueId": role["RoleId"], "tagsAll": call.session.tags(inputs)})


def _read_role(call: Call[Aws], id: str, state: Props) -> Props | None:
    answer = unless_absent(lambda: _iam(call).get_role(RoleName=id))
    if not answer:
        return None
    role = answer["Role"]
    live = {"name": id, "arn": role["Arn"], "assumeRolePolicy": _document(role["AssumeRolePolicyDocument"])}
    return {**state, **live, **live_tags(call, state, from_tags(role.get("Tags", [])))}


def _update_role(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    if not same_json(state.get("assumeRolePolicy"), inputs["assumeRolePolicy"]):
        _iam(call).update_assume_role_policy(RoleName=id, PolicyDocument=inputs["assumeRolePolicy"])
    return _retag(call, "role", {"RoleName": id}, state, inputs)


ROLE = ResourceDef(
    token="aws:iam/role:Role",
    inputs=frozenset({"assumeRolePolicy", "description", "name", "path", "tags"}),
    required=frozenset({"assumeRolePolicy"}),
    outputs=frozenset({"arn", "tagsAll", "uniqueId"}),
    force_new=frozenset({"description", "name", "path"}),
    autoname=Autoname("name", max_length=64),
    same={"assumeRolePolicy": same_json},
    check=_faults("assumeRolePolicy", "Principal"),
    create=_alone(_create_role),
    read=_alone(_read_role),
    update=_alone(_update_role),
    delete=_alone(lambda call, id, state: unless_absent(lambda: _iam(call).delete_role(RoleName=id))),
)

# --- policy ----------------------------------------------------------------------------------------------


def _create_policy(call: Call[Aws], inputs: Props) -> Made:
    policy = _iam(call).create_policy(
        PolicyName=inputs["name"],
        PolicyDocument=inputs["policy"],
        Path=inputs.get("path", "/"),
        Tags=as_tags(call.session.tags(inputs)),
    )["Policy"]
    outputs = {"arn": policy["Arn"], "policyId": policy["PolicyId"], "tagsAll": call.session.tags(inputs)}
    return Made(policy["Arn"], outputs)


def _read_policy(call: Call[Aws], id: str, state: Props) -> Props | None:
    iam = _iam(call)
    answer = unless_absent(lambda: iam.get_policy(PolicyArn=id))
    if not answer:
        return None
    policy = answer["Policy"]
    version = iam.get_policy_version(PolicyArn=id, VersionId=policy["DefaultVersionId"])["PolicyVersion"]
    live = {"name": policy["PolicyName"], "arn": id, "policy": _document(version["Document"])}
    return {**state, **live, **live_tags(call, state, from_tags(policy.get("Tags", [])))}


def _update_policy(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    iam = _iam(call)
    if not same_json(state.get("policy"), inputs["policy"]):
        _forget_versions(iam, id)
        iam.create_policy_version(PolicyArn=id, PolicyDocument=inputs["policy"], SetAsDefault=True)
    return _retag(call, "policy", {"PolicyArn": id}, state, inputs)


def _forget_versions(iam: Any, arn: str) -> None:
    """Deletes old versions: IAM keeps at most five."""
    for version in iam.list_policy_versions(PolicyArn=arn)["Versions"]:
        if not version["IsDefaultVersion"]:
            iam.delete_policy_version(PolicyArn=arn, VersionId=version["VersionId"])


def _delete_policy(call: Call[Aws], id: str, state: Props) -> None:
    iam = _iam(call)
    if unless_absent(lambda: iam.get_policy(PolicyArn=id)):
        _forget_versions(iam, id)
        unless_absent(lambda: iam.delete_policy(PolicyArn=id))


POLICY = ResourceDef(
    token="aws:iam/policy:Policy",
    inputs=frozenset({"name", "path", "policy", "tags"}),
    required=frozenset({"policy"}),
    outputs=frozenset({"arn", "policyId", "tagsAll"}),
    force_new=frozenset({"name", "path"}),
    autoname=Autoname("name", max_length=128),
    same={"policy": same_json},
    check=_faults("policy", "Resource"),
    create=_alone(_create_policy),
    read=_alone(_read_policy),
    update=_alone(_update_policy),
    delete=_alone(_delete_policy),
)

# --- attachment ------------------------------------------------------------------------------------------


def _attach(call: Call[Aws], inputs: Props) -> Made:
    _iam(call).attach_role_policy(RoleName=inputs["role"], PolicyArn=inputs["policyArn"])
    return Made(f"{inputs['role']}-{inputs['policyArn'].rpartition('/')[2]}")


def _read_attachment(call: Call[Aws], id: str, state: Props) -> Props | None:
    iam = _iam(call)
    pages = iam.get_paginator("list_attached_role_policies").paginate(RoleName=state["role"])
    found = unless_absent(lambda: [item["PolicyArn"] for page in pages for item in page["AttachedPolicies"]])
    return dict(state) if state["policyArn"] in (found or ()) else None


def _detach(call: Call[Aws], id: str, state: Props) -> None:
    iam = _iam(call)
    unless_absent(lambda: iam.detach_role_policy(RoleName=state["role"], PolicyArn=state["policyArn"]))


ATTACHMENT = ResourceDef(
    token="aws:iam/rolePolicyAttachment:RolePolicyAttachment",
    inputs=frozenset({"policyArn", "role"}),
    required=frozenset({"policyArn", "role"}),
    create=_alone(_attach),
    read=_alone(_read_attachment),
    delete=_alone(_detach),
)


def _session_context(session: Aws, args: Props) -> Props:
    """`assumed-role/NAME/SESSION` → the role; any other ARN is its own issuer."""
    _, found, rest = args["arn"].partition(":assumed-role/")
    if not found:
        return {"arn": args["arn"], "id": args["arn"], "issuerArn": args["arn"], "issuerName": "", "sessionName": ""}
    name, _, session_name = rest.partition("/")
    role = session.client("iam", "us-east-1").get_role(RoleName=name)["Role"]
    names = {"issuerName": name, "sessionName": session_name, "issuerId": role["RoleId"]}
    return {"arn": args["arn"], "id": args["arn"], "issuerArn": role["Arn"], **names}


RESOURCES = (ROLE, POLICY, ATTACHMENT)
INVOKES = (InvokeDef("aws:iam/getSessionContext:getSessionContext", _session_context),)
