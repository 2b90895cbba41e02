"""KMS keys and aliases, CloudWatch log groups."""

from __future__ import annotations

import base64
from typing import Any

from modelfleet.infra.provider import UNKNOWN, Call, InvokeDef, Made, Props, ResourceDef
from tools.standin.aws.making import as_tags, client, from_tags, live_tags, made, region, unless_absent
from tools.standin.aws.resources.s3_settings import same_json
from tools.standin.aws.session import Aws

# --- key -------------------------------------------------------------------------------------------------


def _kms_tags(call: Call[Aws], inputs: Props) -> list[dict[str, str]]:
    return as_tags(call.session.tags(inputs), "TagKey", "TagValue")


#: What a key is made for, as KMS spells it.
_KIND = {"customerMasterKeySpec": "KeySpec", "keyUsage": "KeyUsage"}
SYMMETRIC = "SYMMETRIC_DEFAULT"


def _create_key(call: Call[Aws], inputs: Props) -> Made:
    kms = client(call, "kms", inputs)
    more = {"Policy": inputs["policy"]} if inputs.get("policy") else {}
    more |= {name: inputs[key] for key, name in _KIND.items() if inputs.get(key)}
    answer = kms.create_key(Description=inputs.get("description", ""), Tags=_kms_tags(call, inputs), **more)
    key = answer["KeyMetadata"]
    outputs = {
        "arn": key["Arn"],
        "keyId": key["KeyId"],
        "region": region(call, inputs),
        "tagsAll": call.session.tags(inputs),
    }
    return made(key["KeyId"], outputs, lambda: _rotate(kms, key["KeyId"], inputs))


def _rotate(kms: Any, id: str, inputs: Props) -> None:
    if inputs.get("customerMasterKeySpec", SYMMETRIC) != SYMMETRIC:
        return  # KMS refuses even the question
    if inputs.get("enableKeyRotation"):
        kms.enable_key_rotation(KeyId=id)
    else:
        kms.disable_key_rotation(KeyId=id)


def _read_key(call: Call[Aws], id: str, state: Props) -> Props | None:
    kms = client(call, "kms", state)
    answer = unless_absent(lambda: kms.describe_key(KeyId=id))
    if not answer or answer["KeyMetadata"]["KeyState"] == "PendingDeletion":
        return None
    tags = from_tags(kms.list_resource_tags(KeyId=id)["Tags"], "TagKey", "TagValue")
    live = {
        "description": answer["KeyMetadata"]["Description"],
        "policy": kms.get_key_policy(KeyId=id, PolicyName="default")["Policy"],
    }
    if state.get("customerMasterKeySpec", SYMMETRIC) == SYMMETRIC:
        live["enableKeyRotation"] = kms.get_key_rotation_status(KeyId=id)["KeyRotationEnabled"]
    return {**state, **{key: value for key, value in live.items() if key in state}, **live_tags(call, state, tags)}


def _update_key(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    kms = client(call, "kms", inputs)
    if inputs.get("description", "") != state.get("description", ""):
        kms.update_key_description(KeyId=id, Description=inputs.get("description", ""))
    if inputs.get("policy") and not same_json(state.get("policy"), inputs["policy"]):
        kms.put_key_policy(KeyId=id, PolicyName="default", Policy=inputs["policy"])
    _rotate(kms, id, inputs)
    wanted, had = call.session.tags(inputs), state.get("tagsAll") or {}
    if gone := sorted(set(had) - set(wanted)):
        kms.untag_resource(KeyId=id, TagKeys=gone)
    if wanted != had and wanted:
        kms.tag_resource(KeyId=id, Tags=_kms_tags(call, inputs))
    return {"tagsAll": wanted}


def _delete_key(call: Call[Aws], id: str, state: Props) -> None:
    days = state.get("deletionWindowInDays", 30)
    kms = client(call, "kms", state)
    key = unless_absent(lambda: kms.describe_key(KeyId=id))
    if key and key["KeyMetadata"]["KeyState"] != "PendingDeletion":
        kms.schedule_key_deletion(KeyId=id, PendingWindowInDays=days)


def _window(inputs: Props) -> list[tuple[str, str]]:
    days = inputs.get("deletionWindowInDays", 30)
    return (
        [] if days == UNKNOWN or 7 <= days <= 30 else [("deletionWindowInDays", f"must be from 7 to 30, found {days}")]
    )


KEY = ResourceDef(
    token="aws:kms/key:Key",
    inputs=frozenset({"deletionWindowInDays", "description", "enableKeyRotation", "policy", "region", "tags", *_KIND}),
    outputs=frozenset({"arn", "keyId", "region", "tagsAll"}),
    force_new=frozenset({"region", *_KIND}),
    same={"policy": same_json},
    check=_window,
    create=_create_key,
    read=_read_key,
    update=_update_key,
    delete=_delete_key,
)


def _get_public_key(session: Aws, args: Props) -> Props:
    answer = session.client("kms", args.get("region")).get_public_key(KeyId=args["keyId"])
    der = base64.b64encode(answer["PublicKey"]).decode()
    lines = "\n".join(der[at : at + 64] for at in range(0, len(der), 64))
    return {
        "id": answer["KeyId"],
        "arn": answer["KeyId"],
        "keyId": args["keyId"],
        "customerMasterKeySpec": answer["CustomerMasterKeySpec"],  # moto tells it by its older name alone
        "keyUsage": answer["KeyUsage"],
        "signingAlgorithms": answer.get("SigningAlgorithms", []),
        "encryptionAlgorithms": answer.get("EncryptionAlgorithms", []),
        "publicKey": der,
        "publicKeyPem": f"-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n",
    }


# --- alias -----------------------------------------------------------------------------------------------


def _create_alias(call: Call[Aws], inputs: Props) -> Made:
    client(call, "kms", inputs).create_alias(AliasName=inputs["name"], TargetKeyId=inputs["targetKeyId"])
    return Made(inputs["name"], {"region": region(call, inputs)})


def _read_alias(call: Call[Aws], id: str, state: Props) -> Props | None:
    pages = client(call, "kms", state).get_paginator("list_aliases").paginate()
    for page in pages:
        for alias in page["Aliases"]:
            if alias["AliasName"] == id:
                return {**state, "name": id, "targetKeyId": alias["TargetKeyId"]}
    return None


def _update_alias(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    client(call, "kms", inputs).update_alias(AliasName=id, TargetKeyId=inputs["targetKeyId"])
    return {}


ALIAS = ResourceDef(
    token="aws:kms/alias:Alias",
    inputs=frozenset({"name", "region", "targetKeyId"}),
    required=frozenset({"name", "targetKeyId"}),
    outputs=frozenset({"region"}),
    force_new=frozenset({"name", "region"}),
    delete_before_replace=True,
    create=_create_alias,
    read=_read_alias,
    update=_update_alias,
    delete=lambda call, id, state: unless_absent(lambda: client(call, "kms", state).delete_alias(AliasName=id)),
)

# --- log group -------------------------------------------------------------------------------------------


def _log_arn(call: Call[Aws], name: str, props: Props) -> str:
    return f"arn:aws:logs:{region(call, props)}:123456789012:log-group:{name}"


def _create_logs(call: Call[Aws], inputs: Props) -> Made:
    logs = client(call, "logs", inputs)
    name = inputs["name"]
    more = {"kmsKeyId": inputs["kmsKeyId"]} if inputs.get("kmsKeyId") else {}
    tags = call.session.tags(inputs)
    logs.create_log_group(logGroupName=name, **more, **({"tags": tags} if tags else {}))
    outputs = {"arn": _log_arn(call, name, inputs), "region": region(call, inputs), "tagsAll": tags}
    return made(name, outputs, lambda: _retain(logs, name, inputs))


def _retain(logs: Any, name: str, inputs: Props) -> None:
    if inputs.get("retentionInDays"):
        logs.put_retention_policy(logGroupName=name, retentionInDays=inputs["retentionInDays"])


def _read_logs(call: Call[Aws], id: str, state: Props) -> Props | None:
    logs = client(call, "logs", state)
    found = [g for g in logs.describe_log_groups(logGroupNamePrefix=id)["logGroups"] if g["logGroupName"] == id]
    if not found:
        return None
    live = {"name": id, "retentionInDays": found[0].get("retentionInDays", 0), "kmsKeyId": found[0].get("kmsKeyId")}
    tags = logs.list_tags_for_resource(resourceArn=_log_arn(call, id, state))["tags"]
    known = {key: value for key, value in live.items() if key in state or not state}  # all of an imported one
    return {**state, **known, **live_tags(call, state, tags)}


def _update_logs(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    logs = client(call, "logs", inputs)
    if inputs.get("kmsKeyId") and inputs["kmsKeyId"] != state.get("kmsKeyId"):
        # AWS can change the key of a group (AssociateKmsKey). moto cannot, so the group is made again.
        unless_absent(lambda: logs.delete_log_group(logGroupName=id))
        logs.create_log_group(logGroupName=id, kmsKeyId=inputs["kmsKeyId"])
        state = {**state, "tagsAll": {}}
    _retain(logs, id, inputs)
    wanted, had = call.session.tags(inputs), state.get("tagsAll") or {}
    arn = _log_arn(call, id, inputs)
    if gone := sorted(set(had) - set(wanted)):
        logs.untag_resource(resourceArn=arn, tagKeys=gone)
    if wanted != had and wanted:
        logs.tag_resource(resourceArn=arn, tags=wanted)
    return {"tagsAll": wanted}


def _delete_logs(call: Call[Aws], id: str, state: Props) -> None:
    unless_absent(lambda: client(call, "logs", state).delete_log_group(logGroupName=id))


LOGS = ResourceDef(
    token="aws:cloudwatch/logGroup:LogGroup",
    inputs=frozenset({"kmsKeyId", "name", "region", "retentionInDays", "tags"}),
    required=frozenset({"name"}),
    outputs=frozenset({"arn", "region", "tagsAll"}),
    # terraform-provider-aws internal/service/logs/group.go
    force_new=frozenset({"name", "region"}),
    delete_before_replace=True,
    create=_create_logs,
    read=_read_logs,
    update=_update_logs,
    delete=_delete_logs,
)


def _get_log_groups(session: Aws, args: Props) -> Props:
    where, prefix = args.get("region") or session.region, args.get("logGroupNamePrefix", "")
    found = session.client("logs", where).describe_log_groups(logGroupNamePrefix=prefix)["logGroups"]
    return {
        **args,
        "id": where,
        "region": where,
        "arns": [group["arn"] for group in found],
        "logGroupNames": [group["logGroupName"] for group in found],
    }


INVOKES = (
    InvokeDef("aws:cloudwatch/getLogGroups:getLogGroups", _get_log_groups),
    InvokeDef("aws:kms/getPublicKey:getPublicKey", _get_public_key),
)
RESOURCES = (KEY, ALIAS, LOGS)
