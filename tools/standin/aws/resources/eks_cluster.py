"""`aws:eks/cluster:Cluster`: arguments to calls of EKS and back. What EKS refuses, the emulated cloud refuses."""

from __future__ import annotations

from typing import Any

from modelfleet.infra.provider import UNKNOWN, Autoname, Call, InvokeDef, Made, Props, ResourceDef
from tools.standin.aws.making import client, ended, live_tags, region, retag_eks, unless_absent
from tools.standin.aws.session import Aws

_INPUTS = frozenset(
    {
        "accessConfig",
        "bootstrapSelfManagedAddons",
        "deletionProtection",
        "enabledClusterLogTypes",
        "encryptionConfig",
        "name",
        "region",
        "roleArn",
        "tags",
        "upgradePolicy",
        "version",
        "vpcConfig",
    }
)
#: Parts of `vpcConfig` that EKS changes by one call, each.
_ACCESS = ("endpointPrivateAccess", "endpointPublicAccess", "publicAccessCidrs")
_NETWORK = ("subnetIds", "securityGroupIds")
_ALL_LOGS = ("api", "audit", "authenticator", "controllerManager", "scheduler")


def _given(props: Props, names: tuple[str, ...]) -> Props:
    return {name: props[name] for name in names if props.get(name) is not None}


def _logging(inputs: Props) -> Props:
    """All types, because one that is not named stays as it is."""
    on = inputs.get("enabledClusterLogTypes") or []
    off = [one for one in _ALL_LOGS if one not in on]
    chosen = ({"types": on, "enabled": True}, {"types": off, "enabled": False})
    return {"clusterLogging": [one for one in chosen if one["types"]]}


def _create(call: Call[Aws], inputs: Props) -> Made:
    request: Props = {
        "name": inputs["name"],
        "roleArn": inputs["roleArn"],
        "resourcesVpcConfig": _given(inputs["vpcConfig"], (*_NETWORK, *_ACCESS)),
        "tags": call.session.tags(inputs),
        **_given(
            inputs, ("accessConfig", "bootstrapSelfManagedAddons", "deletionProtection", "upgradePolicy", "version")
        ),
    }
    if inputs.get("enabledClusterLogTypes"):
        request["logging"] = _logging(inputs)
    if encryption := inputs.get("encryptionConfig"):
        provider = {"keyArn": encryption["provider"]["keyArn"]}
        request["encryptionConfig"] = [{"resources": encryption["resources"], "provider": provider}]
    client(call, "eks", inputs).create_cluster(**request)
    return Made(inputs["name"], _outputs(call, inputs["name"], inputs))


def _get_clusters(session: Aws, args: Props) -> Props:
    where = args.get("region") or session.region
    pages = session.client("eks", where).get_paginator("list_clusters").paginate()
    return {**args, "id": where, "region": where, "names": [name for page in pages for name in page["clusters"]]}


def _get_cluster(session: Aws, args: Props) -> Props:
    live = session.client("eks", args.get("region")).describe_cluster(name=args["name"])["cluster"]
    return {
        **args,
        "id": args["name"],
        "region": args.get("region") or session.region,
        "arn": live["arn"],
        "endpoint": live["endpoint"],
        "certificateAuthorities": [{"data": live["certificateAuthority"]["data"]}],
        "status": live["status"],
        "version": live["version"],
    }


def _outputs(call: Call[Aws], name: str, inputs: Props) -> Props:
    live = client(call, "eks", inputs).describe_cluster(name=name)["cluster"]
    authority = {"data": live["certificateAuthority"]["data"]}
    return {
        "arn": live["arn"],
        "certificateAuthority": authority,
        "certificateAuthorities": [authority],
        "endpoint": live["endpoint"],
        "identities": [{"oidcs": [{"issuer": live["identity"]["oidc"]["issuer"]}]}],
        "platformVersion": live["platformVersion"],
        "region": region(call, inputs),
        "status": live["status"],
        "tagsAll": call.session.tags(inputs),
        "vpcConfig": {**inputs["vpcConfig"], **_given(live["resourcesVpcConfig"], ("clusterSecurityGroupId", "vpcId"))},
    }


def _read(call: Call[Aws], id: str, state: Props) -> Props | None:
    answer = unless_absent(lambda: client(call, "eks", state).describe_cluster(name=id))
    if not answer:
        return None
    live = answer["cluster"]
    vpc = live["resourcesVpcConfig"]
    seen = {
        **_given(live, ("deletionProtection", "upgradePolicy", "version")),
        "accessConfig": {name: live["accessConfig"].get(name) for name in state.get("accessConfig") or {}},
        "enabledClusterLogTypes": [
            t for one in live["logging"]["clusterLogging"] if one["enabled"] for t in one["types"]
        ],
    }
    config = {**state.get("vpcConfig", {}), **{name: vpc[name] for name in state.get("vpcConfig", {}) if name in vpc}}
    return {
        **state,
        **_outputs(call, id, {**state, "vpcConfig": config}),
        **{key: value for key, value in seen.items() if key in state},
        "name": id,
        "roleArn": live["roleArn"],
        **live_tags(call, state, live.get("tags", {})),
    }


def _update(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    eks = client(call, "eks", inputs)
    if inputs.get("version") and inputs["version"] != state.get("version"):
        ended(eks, eks.update_cluster_version(name=id, version=inputs["version"])["update"], name=id)
    for change in _changes(state, inputs):
        ended(eks, eks.update_cluster_config(name=id, **change)["update"], name=id)
    retag_eks(call, eks.describe_cluster(name=id)["cluster"]["arn"], state, inputs)
    return _outputs(call, id, inputs)


def _changes(old: Props, new: Props) -> list[Props]:
    """One kind of change a call, as EKS wants it (terraform-provider-aws internal/service/eks/cluster.go)."""
    changes: list[Props] = []
    for names in (_ACCESS, _NETWORK):
        wanted = _given(new["vpcConfig"], names)
        if wanted != _given(old.get("vpcConfig") or {}, names):
            changes.append({"resourcesVpcConfig": wanted})
    if sorted(old.get("enabledClusterLogTypes") or []) != sorted(new.get("enabledClusterLogTypes") or []):
        changes.append({"logging": _logging(new)})
    for name in ("upgradePolicy", "deletionProtection"):
        if new.get(name) is not None and new[name] != old.get(name):
            changes.append({name: new[name]})
    mode = (new.get("accessConfig") or {}).get("authenticationMode")
    if mode and mode != (old.get("accessConfig") or {}).get("authenticationMode"):
        changes.append({"accessConfig": {"authenticationMode": mode}})
    return changes


def _delete(call: Call[Aws], id: str, state: Props) -> None:
    unless_absent(lambda: client(call, "eks", state).delete_cluster(name=id))


def _preview(inputs: Props) -> Props:
    """An input with computed parts: until the cluster is made, these are unknown rather than absent."""
    return {"vpcConfig": {**inputs["vpcConfig"], "clusterSecurityGroupId": UNKNOWN, "vpcId": UNKNOWN}}


def _check(inputs: Props) -> list[tuple[str, str]]:
    vpc: Any = inputs.get("vpcConfig")
    subnets = vpc.get("subnetIds") if isinstance(vpc, dict) else UNKNOWN
    if subnets != UNKNOWN and isinstance(subnets, list) and len(subnets) < 2:
        return [("vpcConfig.subnetIds", "EKS needs subnets in at least two zones")]
    return []


INVOKES = (
    InvokeDef("aws:eks/getClusters:getClusters", _get_clusters),
    InvokeDef("aws:eks/getCluster:getCluster", _get_cluster),
)
RESOURCES = (
    ResourceDef(
        token="aws:eks/cluster:Cluster",
        inputs=_INPUTS,
        required=frozenset({"roleArn", "vpcConfig"}),
        outputs=frozenset(
            {
                "arn",
                "certificateAuthorities",
                "certificateAuthority",
                "endpoint",
                "identities",
                "platformVersion",
                "region",
                "status",
                "tagsAll",
                "vpcConfig",
            }
        ),
        # terraform-provider-aws internal/service/eks/cluster.go
        force_new=frozenset(
            {
                "accessConfig.bootstrapClusterCreatorAdminPermissions",
                "bootstrapSelfManagedAddons",
                "encryptionConfig",
                "name",
                "region",
                "roleArn",
            }
        ),
        autoname=Autoname("name", max_length=100),
        check=_check,
        preview=_preview,
        create=_create,
        read=_read,
        update=_update,
        delete=_delete,
    ),
)
