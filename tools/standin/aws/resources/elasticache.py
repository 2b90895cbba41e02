"""ElastiCache's subnet and replication groups. Force-new from terraform-provider-aws internal/service/elasticache."""

from __future__ import annotations

from typing import Any

from modelfleet.infra.provider import Call, Made, NotDone, Props, ResourceDef
from tools.standin.aws import making
from tools.standin.aws.session import Aws

# --- subnet group ----------------------------------------------------------------------------------------


def _client(call: Call[Aws], props: Props) -> Any:
    return making.client(call, "elasticache", props)


def _retag(call: Call[Aws], state: Props, inputs: Props) -> Props:
    wanted, had = call.session.tags(inputs), state.get("tagsAll") or {}
    cache, arn = _client(call, inputs), state["arn"]
    if gone := sorted(set(had) - set(wanted)):
        cache.remove_tags_from_resource(ResourceName=arn, TagKeys=gone)
    if wanted != had and wanted:
        cache.add_tags_to_resource(ResourceName=arn, Tags=making.as_tags(wanted))
    return {"tagsAll": wanted}


def _live_tags(call: Call[Aws], state: Props, arn: str) -> Props:
    pairs = _client(call, state).list_tags_for_resource(ResourceName=arn)["TagList"]
    return making.live_tags(call, state, making.from_tags(pairs))


def _create_subnets(call: Call[Aws], inputs: Props) -> Made:
    tags = call.session.tags(inputs)
    answer = _client(call, inputs).create_cache_subnet_group(
        CacheSubnetGroupName=inputs["name"],
        CacheSubnetGroupDescription=inputs["description"],
        SubnetIds=inputs["subnetIds"],
        Tags=making.as_tags(tags),
    )["CacheSubnetGroup"]
    outputs = {
        "arn": answer["ARN"],
        "region": making.region(call, inputs),
        "tagsAll": tags,
        "vpcId": answer.get("VpcId", ""),
    }
    return Made(inputs["name"], outputs)


def _read_subnets(call: Call[Aws], id: str, state: Props) -> Props | None:
    cache = _client(call, state)
    answer = making.unless_absent(lambda: cache.describe_cache_subnet_groups(CacheSubnetGroupName=id))
    found = making.first(answer and answer["CacheSubnetGroups"])
    if not found:
        return None
    live = {
        "name": id,
        "description": found["CacheSubnetGroupDescription"],
        "subnetIds": [subnet["SubnetIdentifier"] for subnet in found["Subnets"]],
    }
    return {**state, **live, **_live_tags(call, state, found["ARN"])}


def _update_subnets(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    if any(state[key] != inputs[key] for key in ("subnetIds", "description")):
        raise NotDone("aws:elasticache/subnetGroup:SubnetGroup: other subnets or words (moto cannot)")
    return _retag(call, state, inputs)


SUBNET_GROUP = ResourceDef(
    token="aws:elasticache/subnetGroup:SubnetGroup",
    inputs=frozenset({"description", "name", "region", "subnetIds", "tags"}),
    required=frozenset({"name", "subnetIds"}),
    outputs=frozenset({"arn", "region", "tagsAll", "vpcId"}),
    force_new=frozenset({"name", "region"}),
    defaults={"description": "Managed by Pulumi"},
    create=_create_subnets,
    read=_read_subnets,
    update=_update_subnets,
    delete=lambda call, id, state: making.unless_absent(
        lambda: _client(call, state).delete_cache_subnet_group(CacheSubnetGroupName=id)
    ),
)

# --- replication group -----------------------------------------------------------------------------------

_SAME_NAME = (
    "applyImmediately",
    "atRestEncryptionEnabled",
    "authToken",
    "automaticFailoverEnabled",
    "engine",
    "engineVersion",
    "numCacheClusters",
    "port",
    "replicationGroupId",
    "securityGroupIds",
    "snapshotRetentionLimit",
    "transitEncryptionEnabled",
)
_NAMES = {
    "description": "ReplicationGroupDescription",
    "multiAzEnabled": "MultiAZEnabled",
    "nodeType": "CacheNodeType",
    "subnetGroupName": "CacheSubnetGroupName",
    **{key: making.capital(key) for key in _SAME_NAME if key != "applyImmediately"},
}
#: What ModifyReplicationGroup of moto changes.
_CHANGES = ("automaticFailoverEnabled", "description", "multiAzEnabled", "nodeType", "snapshotRetentionLimit")


def _asked(inputs: Props, names: Any) -> Props:
    return {_NAMES[key]: inputs[key] for key in names if inputs.get(key) is not None}


def _create_group(call: Call[Aws], inputs: Props) -> Made:
    tags = call.session.tags(inputs)
    _client(call, inputs).create_replication_group(**_asked(inputs, _NAMES), Tags=making.as_tags(tags))
    id = inputs["replicationGroupId"]
    found = _found(call, id, inputs)
    return Made(id, {**_outputs(found), "region": making.region(call, inputs), "tagsAll": tags})


def _found(call: Call[Aws], id: str, props: Props) -> Any:
    answer = making.unless_absent(lambda: _client(call, props).describe_replication_groups(ReplicationGroupId=id))
    return making.first(answer and answer["ReplicationGroups"])


def _outputs(found: Any) -> Props:
    return {
        "arn": found["ARN"],
        "primaryEndpointAddress": found["NodeGroups"][0]["PrimaryEndpoint"]["Address"],
        "memberClusters": found["MemberClusters"],
    }


def _read_group(call: Call[Aws], id: str, state: Props) -> Props | None:
    found = _found(call, id, state)
    if not found:
        return None
    live = {
        "atRestEncryptionEnabled": found["AtRestEncryptionEnabled"],
        "automaticFailoverEnabled": found["AutomaticFailover"] == "enabled",
        "description": found["Description"],
        "multiAzEnabled": found["MultiAZ"] == "enabled",
        "nodeType": found["CacheNodeType"],
        "replicationGroupId": id,
        "snapshotRetentionLimit": found["SnapshotRetentionLimit"],
        "transitEncryptionEnabled": found["TransitEncryptionEnabled"],
    }
    known = {key: value for key, value in live.items() if key in state}  # AWS tells no token, moto no number
    return {**state, **known, **_outputs(found), **_live_tags(call, state, found["ARN"])}


def _update_group(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    changed = [key for key in _NAMES if inputs.get(key) != state.get(key)]
    if other := sorted(set(changed) - set(_CHANGES)):
        raise NotDone(f"aws:elasticache/replicationGroup:ReplicationGroup: a change of {', '.join(other)}")
    if changed:
        _client(call, inputs).modify_replication_group(
            ReplicationGroupId=id, ApplyImmediately=True, **_asked(inputs, changed)
        )
    return _retag(call, state, inputs)


REPLICATION_GROUP = ResourceDef(
    token="aws:elasticache/replicationGroup:ReplicationGroup",
    inputs=frozenset({*_NAMES, "applyImmediately", "region", "tags"}),
    required=frozenset({"description"}),
    outputs=frozenset({"arn", "memberClusters", "primaryEndpointAddress", "region", "tagsAll"}),
    force_new=frozenset(
        {
            "atRestEncryptionEnabled",
            "port",
            "region",
            "replicationGroupId",
            "subnetGroupName",
            "transitEncryptionEnabled",
        }
    ),
    secret_outputs=frozenset({"authToken"}),
    create=_create_group,
    read=_read_group,
    update=_update_group,
    delete=lambda call, id, state: making.unless_absent(
        lambda: _client(call, state).delete_replication_group(ReplicationGroupId=id)
    ),
)

INVOKES = ()
RESOURCES = (SUBNET_GROUP, REPLICATION_GROUP)
