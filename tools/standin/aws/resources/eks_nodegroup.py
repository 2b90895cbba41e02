"""`aws:eks/nodeGroup:NodeGroup`: arguments to calls of EKS and back. What EKS refuses, the emulated cloud refuses.

A group that ends in CREATE_FAILED stays in the state, with the error.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

from modelfleet.infra.provider import UNKNOWN, Call, InvokeDef, Made, PartlyMade, Props, ResourceDef
from tools.standin.aws.making import client, ended, live_tags, region, retag_eks, unless_absent
from tools.standin.aws.session import Aws

_INPUTS = frozenset(
    {
        "amiType",
        "capacityType",
        "clusterName",
        "instanceTypes",
        "labels",
        "launchTemplate",
        "nodeGroupName",
        "nodeGroupNamePrefix",
        "nodeRepairConfig",
        "nodeRoleArn",
        "region",
        "releaseVersion",
        "scalingConfig",
        "subnetIds",
        "tags",
        "taints",
        "updateConfig",
        "version",
    }
)
#: Length of the suffix that the Terraform provider adds to a prefix; the whole name has at most 63 characters.
_SUFFIX = 26
_LONGEST_NAME = 63
#: What UpdateNodegroupConfig changes; versions and launch template are UpdateNodegroupVersion's.
_CONFIG = ("labels", "taints", "scalingConfig", "updateConfig", "nodeRepairConfig")
#: The Terraform provider's words (`waitNodegroupCreated`).
_FAILED = "waiting for EKS Node Group ({id}) create: unexpected state 'CREATE_FAILED', wanted target 'ACTIVE'"


def _id(cluster: str, name: str) -> str:
    return f"{cluster}:{name}"


def _name(call: Call[Aws], inputs: Props) -> str:
    if inputs.get("nodeGroupName"):
        return str(inputs["nodeGroupName"])
    seed = hashlib.sha256(f"{call.urn}{time.time_ns()}".encode()).hexdigest()
    return f"{inputs['nodeGroupNamePrefix']}{seed[:_SUFFIX]}"


def _template(inputs: Props) -> Props | None:
    template = inputs.get("launchTemplate")
    return {key: str(template[key]) for key in ("id", "name", "version") if template.get(key)} if template else None


def _request(call: Call[Aws], inputs: Props, name: str) -> Props:
    request: Props = {
        "clusterName": inputs["clusterName"],
        "nodegroupName": name,
        "nodeRole": inputs["nodeRoleArn"],
        "subnets": inputs["subnetIds"],
        "scalingConfig": inputs["scalingConfig"],
        "labels": inputs.get("labels") or {},
        "taints": inputs.get("taints") or [],
        "tags": call.session.tags(inputs),
    }
    for key in (
        "amiType",
        "capacityType",
        "instanceTypes",
        "nodeRepairConfig",
        "releaseVersion",
        "updateConfig",
        "version",
    ):
        if inputs.get(key) is not None:
            request[key] = inputs[key]
    if template := _template(inputs):
        request["launchTemplate"] = template
    return request


def _create(call: Call[Aws], inputs: Props) -> Made:
    name, eks = _name(call, inputs), client(call, "eks", inputs)
    eks.create_nodegroup(**_request(call, inputs, name))
    id, live = _id(inputs["clusterName"], name), _describe(call, inputs, name)
    outputs = _outputs(call, inputs, name, live)
    if live["status"] == "CREATE_FAILED":
        issues = (
            f"{', '.join(one['resourceIds'])}: {one['code']}: {one['message']}" for one in live["health"]["issues"]
        )
        raise PartlyMade(id, outputs, [f"{_FAILED.format(id=id)}. last error: {'; '.join(issues)}"])
    return Made(id, outputs)


def _describe(call: Call[Aws], props: Props, name: str) -> Any:
    eks = client(call, "eks", props)
    return unless_absent(
        lambda: eks.describe_nodegroup(clusterName=props["clusterName"], nodegroupName=name)["nodegroup"]
    )


def _outputs(call: Call[Aws], props: Props, name: str, live: Any) -> Props:
    groups = [{"name": group["name"]} for group in live["resources"]["autoScalingGroups"]]
    return {
        "arn": live["nodegroupArn"],
        "nodeGroupName": name,
        "region": region(call, props),
        "resources": [{"autoscalingGroups": groups, "remoteAccessSecurityGroupId": ""}],
        "status": live["status"],
        "tagsAll": call.session.tags(props),
    }


def _read(call: Call[Aws], id: str, state: Props) -> Props | None:
    cluster, _, name = id.partition(":")
    live = _describe(call, {**state, "clusterName": cluster}, name)
    if not live:
        return None
    template = live.get("launchTemplate") or {}
    seen = {
        "amiType": live["amiType"],
        "capacityType": live["capacityType"],
        "labels": live.get("labels", {}),
        "taints": live.get("taints", []),
        "scalingConfig": live["scalingConfig"],
        "subnetIds": _in_order_of(state.get("subnetIds") or [], live["subnets"]),
        "nodeRoleArn": live["nodeRole"],
        "updateConfig": live.get("updateConfig"),
        "nodeRepairConfig": live.get("nodeRepairConfig"),
        "version": live["version"],
        "releaseVersion": live["releaseVersion"],
        "launchTemplate": {name: template.get(name) for name in state.get("launchTemplate") or {}},
        **({"instanceTypes": live["instanceTypes"]} if state.get("instanceTypes") else {}),
    }
    tags, outputs = live_tags(call, state, live.get("tags", {})), _outputs(call, state, name, live)
    return {**state, "clusterName": cluster, **{k: v for k, v in seen.items() if k in state}, **outputs, **tags}


def _in_order_of(known: list[str], found: list[str]) -> list[str]:
    return [item for item in known if item in found] + sorted(set(found) - set(known))


def _update(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    cluster, _, name = id.partition(":")
    eks, group = client(call, "eks", inputs), {"clusterName": cluster, "nodegroupName": name}
    if changes := _changes(state, inputs):
        update = eks.update_nodegroup_config(**group, **changes)["update"]
        ended(eks, update, name=cluster, nodegroupName=name)
    request = _request(call, inputs, name)
    had = _request(call, state, name)
    version = {key: request[key] for key in ("version", "releaseVersion", "launchTemplate") if key in request}
    if any(value != had.get(key) for key, value in version.items()):
        update = eks.update_nodegroup_version(**group, **version)["update"]
        ended(eks, update, name=cluster, nodegroupName=name)
    live = _describe(call, inputs, name)
    retag_eks(call, live["nodegroupArn"], state, inputs)
    return _outputs(call, inputs, name, live)


def _changes(old: Props, new: Props) -> Props:
    """What UpdateNodegroupConfig gets, in the add-and-remove form that EKS needs."""
    changes: Props = {}
    for key in (key for key in _CONFIG if new.get(key) != old.get(key)):
        had, wanted = old.get(key), new.get(key)
        if key == "labels":
            gone = sorted(set(had or {}) - set(wanted or {}))
            changes[key] = {"addOrUpdateLabels": wanted or {}, "removeLabels": gone}
        elif key == "taints":
            gone_taints = [taint for taint in had or [] if taint not in (wanted or [])]
            changes[key] = {"addOrUpdateTaints": wanted or [], "removeTaints": gone_taints}
        elif wanted is not None:
            changes[key] = wanted
    return changes


def _delete(call: Call[Aws], id: str, state: Props) -> None:
    cluster, _, name = id.partition(":")
    unless_absent(lambda: client(call, "eks", state).delete_nodegroup(clusterName=cluster, nodegroupName=name))


def _check(inputs: Props) -> list[tuple[str, str]]:
    faults = []
    prefix = inputs.get("nodeGroupNamePrefix")
    if isinstance(prefix, str) and prefix != UNKNOWN and len(prefix) > _LONGEST_NAME - _SUFFIX:
        faults.append(("nodeGroupNamePrefix", f"at most {_LONGEST_NAME - _SUFFIX} characters, found {len(prefix)}"))
    if not inputs.get("nodeGroupName") and not prefix:
        faults.append(("nodeGroupName", "set nodeGroupName or nodeGroupNamePrefix"))
    return faults


def _get_node_groups(session: Aws, args: Props) -> Props:
    """Names of a cluster's node groups; EKS's error if there is no such cluster."""
    pages = session.client("eks", args.get("region")).get_paginator("list_nodegroups")
    names = [name for page in pages.paginate(clusterName=args["clusterName"]) for name in page["nodegroups"]]
    where = args.get("region") or session.region
    return {"clusterName": args["clusterName"], "id": args["clusterName"], "names": names, "region": where}


def _get_node_group(session: Aws, args: Props) -> Props:
    cluster, name = args["clusterName"], args["nodeGroupName"]
    eks = session.client("eks", args.get("region"))
    live = eks.describe_nodegroup(clusterName=cluster, nodegroupName=name)["nodegroup"]
    return {
        "amiType": live["amiType"],
        "arn": live["nodegroupArn"],
        "capacityType": live["capacityType"],
        "clusterName": cluster,
        "diskSize": live.get("diskSize") or 0,
        "id": _id(cluster, name),
        "instanceTypes": live.get("instanceTypes") or [],
        "labels": live.get("labels") or {},
        "launchTemplates": [],
        "nodeGroupName": name,
        "nodeRoleArn": live["nodeRole"],
        "region": args.get("region") or session.region,
        "releaseVersion": live["releaseVersion"],
        "remoteAccesses": [],
        "resources": [],
        "scalingConfigs": [live["scalingConfig"]],
        "status": live["status"],
        "subnetIds": live["subnets"],
        "tags": live.get("tags") or {},
        "taints": live.get("taints") or [],
        "updateConfigs": [],
        "version": live["version"],
        "warmPoolConfigs": [],
    }


INVOKES = (
    InvokeDef("aws:eks/getNodeGroups:getNodeGroups", _get_node_groups),
    InvokeDef("aws:eks/getNodeGroup:getNodeGroup", _get_node_group),
)
RESOURCES = (
    ResourceDef(
        token="aws:eks/nodeGroup:NodeGroup",
        inputs=_INPUTS,
        required=frozenset({"clusterName", "nodeRoleArn", "scalingConfig", "subnetIds"}),
        outputs=frozenset({"arn", "nodeGroupName", "region", "resources", "status", "tagsAll"}),
        # terraform-provider-aws internal/service/eks/node_group.go
        force_new=frozenset(
            {
                "amiType",
                "capacityType",
                "clusterName",
                "instanceTypes",
                "launchTemplate.id",
                "launchTemplate.name",
                "nodeGroupName",
                "nodeGroupNamePrefix",
                "nodeRoleArn",
                "region",
                "subnetIds",
            }
        ),
        check=_check,
        create=_create,
        read=_read,
        update=_update,
        delete=_delete,
    ),
)
