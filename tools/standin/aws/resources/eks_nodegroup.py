"""`aws:eks/nodeGroup:NodeGroup`: moto keeps it; `eks/nodegroups/…` has what moto drops or cannot update.

A group whose nodes could not join (node_join.py) is made and ends in CREATE_FAILED, as on EKS.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

from modelfleet.infra.provider import UNKNOWN, Call, InvokeDef, Made, PartlyMade, Props, Refused, ResourceDef
from tools.standin.aws.making import client, live_tags, made, region, unless_absent
from tools.standin.aws.node_join import why_nodes_cannot_join
from tools.standin.aws.resources.iam import ONE_AT_A_TIME
from tools.standin.aws.session import Aws
from tools.standin.aws.table import Table, validated

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
#: moto updates these; everything else that changes in place is in the table.
_IN_MOTO = ("labels", "taints", "scalingConfig", "updateConfig", "nodeRepairConfig")


def entry(cluster: str, name: str) -> str:
    """The table key of a node group."""
    return f"eks/nodegroups/{cluster}/{name}"


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
    name = _name(call, inputs)
    request = validated("eks", "CreateNodegroup", _request(call, inputs, name))
    _refuse(call, inputs, request)
    client(call, "eks", inputs).create_nodegroup(
        **{key: value for key, value in request.items() if key not in ("updateConfig", "nodeRepairConfig")}
    )
    cluster = inputs["clusterName"]
    known = {"nodeGroupName": name, "tagsAll": request["tags"]}
    problem = _why_no_node_joins(call, inputs)
    extra = {**_extra(request), **({"failed": problem} if problem else {})}
    done = made(
        _id(cluster, name),
        known,
        lambda: Table(call.session).put(entry(cluster, name), extra),
        lambda: _configure(call, inputs, name, ("updateConfig", "nodeRepairConfig")),
    )
    outputs = {**done.outputs, **_outputs(call, inputs, name)}
    if problem:
        raise PartlyMade(done.id, outputs, [_failed(done.id, problem)])
    return Made(done.id, outputs)


def _why_no_node_joins(call: Call[Aws], inputs: Props) -> str:
    role, data = inputs["nodeRoleArn"].rpartition("/")[2], _template_data(call, inputs)
    with ONE_AT_A_TIME:
        return why_nodes_cannot_join(call.session.client("iam", "us-east-1"), role, data.get("UserData"))


def _failed(id: str, problem: str) -> str:
    """The Terraform provider's words (`waitNodegroupCreated`)."""
    return f"waiting for EKS Node Group ({id}) create: unexpected state 'CREATE_FAILED', wanted 'ACTIVE': {problem}"


def _extra(request: Props) -> Props:
    """The table's part: what moto cannot change later."""
    kept = ("version", "releaseVersion", "launchTemplate", "tags", "updateConfig", "nodeRepairConfig")
    return {key: request[key] for key in kept if key in request}


def _refuse(call: Call[Aws], inputs: Props, request: Props) -> None:
    """Refuses what moto accepts and EKS does not."""
    where = "CreateNodegroup: InvalidParameterException:"
    if problem := _scaling_fault(inputs["scalingConfig"]):
        raise Refused(f"{where} {problem}")
    ec2 = client(call, "ec2", inputs)
    subnets = ec2.describe_subnets(SubnetIds=request["subnets"])["Subnets"]
    template = _template_data(call, inputs)
    own_type = template.get("InstanceType")
    if own_type and inputs.get("instanceTypes"):
        raise Refused(f"{where} set the instance type in the launch template or in the request, not in both")
    if inputs.get("capacityType") == "CAPACITY_BLOCK":
        target = template.get("CapacityReservationSpecification", {}).get("CapacityReservationTarget")
        market = template.get("InstanceMarketOptions", {}).get("MarketType")
        if market != "capacity-block" or not target or not own_type:
            raise Refused(
                f"{where} CAPACITY_BLOCK needs a market type, a reservation and an instance type in the template"
            )
    zones = sorted({subnet["AvailabilityZone"] for subnet in subnets})
    for name in [own_type] if own_type else inputs.get("instanceTypes") or []:
        offered = ec2.describe_instance_type_offerings(
            LocationType="availability-zone",
            Filters=[{"Name": "instance-type", "Values": [name]}, {"Name": "location", "Values": zones}],
        )["InstanceTypeOfferings"]
        if not offered:
            raise Refused(f"{where} instance type {name} is not offered in {', '.join(zones)}")
    call.session.client("iam", "us-east-1").get_role(RoleName=request["nodeRole"].rpartition("/")[2])


def _template_data(call: Call[Aws], inputs: Props) -> Any:
    template = _template(inputs)
    if not template:
        return {}
    ec2 = client(call, "ec2", inputs)
    answer = ec2.describe_launch_template_versions(LaunchTemplateId=template["id"], Versions=[template["version"]])
    return answer["LaunchTemplateVersions"][0]["LaunchTemplateData"]


def _scaling_fault(scaling: Props) -> str:
    """EKS's words (terraform-aws-eks#3306, #3521; aws-cdk `aws-eks/lib/managed-nodegroup.ts`)."""
    low, desired, high = (int(scaling.get(key, 0)) for key in ("minSize", "desiredSize", "maxSize"))
    if low > desired:
        return f"Minimum capacity {low} can't be greater than desired size {desired}"
    if desired > high:
        return f"desired capacity {desired} can't be greater than max size {high}"
    return "" if high >= 1 else "maxSize must be at least 1"


def _describe(call: Call[Aws], props: Props, name: str) -> Any:
    eks = client(call, "eks", props)
    return unless_absent(
        lambda: eks.describe_nodegroup(clusterName=props["clusterName"], nodegroupName=name)["nodegroup"]
    )


def _outputs(call: Call[Aws], props: Props, name: str) -> Props:
    live = _describe(call, props, name)
    extra = Table(call.session).find(entry(props["clusterName"], name)) or {}
    groups = [{"name": group["name"]} for group in live["resources"]["autoScalingGroups"]]
    return {
        "arn": live["nodegroupArn"],
        "nodeGroupName": name,
        "region": region(call, props),
        "resources": [{"autoscalingGroups": groups, "remoteAccessSecurityGroupId": ""}],
        "status": "CREATE_FAILED" if extra.get("failed") else live["status"],
        "tagsAll": call.session.tags(props),
    }


def _read(call: Call[Aws], id: str, state: Props) -> Props | None:
    cluster, _, name = id.partition(":")
    live = _describe(call, {**state, "clusterName": cluster}, name)
    if not live:
        Table(call.session).delete(entry(cluster, name))  # deleted by hand, without the stand-in
        return None
    extra = Table(call.session).find(entry(cluster, name)) or {}
    seen = {
        "amiType": live["amiType"],
        "capacityType": live["capacityType"],
        "labels": live.get("labels", {}),
        "taints": live.get("taints", []),
        "scalingConfig": live["scalingConfig"],
        "subnetIds": _in_order_of(state.get("subnetIds") or [], live["subnets"]),
        "nodeRoleArn": live["nodeRole"],
        "updateConfig": live.get("updateConfig") or extra.get("updateConfig"),
        "nodeRepairConfig": live.get("nodeRepairConfig") or extra.get("nodeRepairConfig"),
        "version": extra.get("version"),
        "releaseVersion": extra.get("releaseVersion"),
        "launchTemplate": extra.get("launchTemplate"),
        **({"instanceTypes": live["instanceTypes"]} if state.get("instanceTypes") else {}),
    }
    tags = live_tags(call, state, extra.get("tags", {}))
    outputs = _outputs(call, state, name)
    return {**state, "clusterName": cluster, **{k: v for k, v in seen.items() if k in state}, **outputs, **tags}


def _in_order_of(known: list[str], found: list[str]) -> list[str]:
    return [item for item in known if item in found] + sorted(set(found) - set(known))


def _update(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    cluster, _, name = id.partition(":")
    table = Table(call.session)
    extra = table.find(entry(cluster, name)) or {}
    if extra.get("failed"):
        raise Refused(
            f"{_failed(id, extra['failed'])}; mend the cause, then replace it: pulumi up --target-replace URN"
        )
    request = _request(call, inputs, name)
    if problem := _scaling_fault(inputs["scalingConfig"]):
        raise Refused(f"UpdateNodegroupConfig: InvalidParameterException: {problem}")
    changed = tuple(key for key in _IN_MOTO if inputs.get(key) != state.get(key) or key not in extra)
    _configure(call, inputs, name, changed, state)
    version: Props = {k: request[k] for k in ("version", "releaseVersion", "launchTemplate") if k in request}
    if any(version[key] != extra.get(key) for key in version):
        table.call("eks", "UpdateNodegroupVersion", {"clusterName": cluster, "nodegroupName": name, **version})
    table.put(entry(cluster, name), _extra(request))
    return _outputs(call, inputs, name)


def _configure(call: Call[Aws], inputs: Props, name: str, keys: tuple[str, ...], state: Props | None = None) -> None:
    """Calls UpdateNodegroupConfig for what changed, in the add-and-remove form that EKS needs."""
    old = state or {}
    changes: Props = {}
    for key in keys:
        new = inputs.get(key)
        if key == "labels":
            gone = sorted(set(old.get(key) or {}) - set(new or {}))
            changes[key] = {"addOrUpdateLabels": new or {}, "removeLabels": gone}
        elif key == "taints":
            gone_taints = [taint for taint in old.get(key) or [] if taint not in (new or [])]
            changes[key] = {"addOrUpdateTaints": new or [], "removeTaints": gone_taints}
        elif new is not None:
            changes[key] = new
    if changes:
        params = {"clusterName": inputs["clusterName"], "nodegroupName": name, **changes}
        client(call, "eks", inputs).update_nodegroup_config(**params)


def _delete(call: Call[Aws], id: str, state: Props) -> None:
    cluster, _, name = id.partition(":")
    eks = client(call, "eks", state)
    unless_absent(lambda: eks.delete_nodegroup(clusterName=cluster, nodegroupName=name))
    Table(call.session).delete(entry(cluster, name))


def _check(inputs: Props) -> list[tuple[str, str]]:
    faults = []
    prefix = inputs.get("nodeGroupNamePrefix")
    if isinstance(prefix, str) and prefix != UNKNOWN and len(prefix) > _LONGEST_NAME - _SUFFIX:
        faults.append(("nodeGroupNamePrefix", f"at most {_LONGEST_NAME - _SUFFIX} characters, found {len(prefix)}"))
    if not inputs.get("nodeGroupName") and not prefix:
        faults.append(("nodeGroupName", "set nodeGroupName or nodeGroupNamePrefix"))
    scaling = inputs.get("scalingConfig")
    if isinstance(scaling, dict) and UNKNOWN not in scaling.values() and (problem := _scaling_fault(scaling)):
        faults.append(("scalingConfig", problem))
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
    extra = Table(session).find(entry(cluster, name)) or {}
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
        "releaseVersion": extra.get("releaseVersion") or "",
        "remoteAccesses": [],
        "resources": [],
        "scalingConfigs": [live["scalingConfig"]],
        "status": "CREATE_FAILED" if extra.get("failed") else live["status"],
        "subnetIds": live["subnets"],
        "tags": extra.get("tags") or live.get("tags") or {},
        "taints": live.get("taints") or [],
        "updateConfigs": [],
        "version": extra.get("version") or "",
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
