"""Managed node groups: moto keeps them, and what it lacks is here: health, versions, tags, updates that drain.

Whether nodes join is in `joining.py`, what they look like in `nodes.py`, their Auto Scaling group in `groups.py`.
https://docs.aws.amazon.com/eks/latest/userguide/managed-node-update-behavior.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moto.eks.exceptions import EKSError
from moto.eks.models import Nodegroup, eks_backends

from tools.cloud import groups
from tools.cloud.answers import Error
from tools.cloud.backends import clusters
from tools.cloud.backends.parts import Item, Parts, as_refused, update_of
from tools.cloud.backends.scaling import Scaling
from tools.cloud.callers import ACCOUNT
from tools.cloud.joining import why_not
from tools.cloud.nodes import nodes_of
from tools.cloud.rules import error, template_data
from tools.cloud.wire import Call

#: EKS tries to evict the pods of a node for 15 minutes, and then fails the update unless it is forced.
DRAIN_S = 15 * 60
NO_INSTANCES = "AsgInstanceLaunchFailures"
RELEASE = "{version}.0-20261101"
"""The newest AMI release of a minor version; the date is ours."""


@dataclass
class NodeGroups:
    """The node groups of all clusters. `drains`: seconds that the slowest pod takes to leave, by start of a name."""

    scaling: Scaling
    drains: dict[str, int] = field(default_factory=dict)

    def create(self, parts: Parts, call: Call) -> Item:
        """A new group. Without instances or with nodes that cannot join, it is there and has failed."""
        params = call.params
        version = str(params.get("version") or _cluster(call).version)
        named = {
            "scaling_config": params.get("scalingConfig"),
            "disk_size": params.get("diskSize"),
            "instance_types": params.get("instanceTypes"),
            "ami_type": params.get("amiType"),
            "remote_access": params.get("remoteAccess"),
            "labels": dict(params.get("labels") or {}),
            "taints": list(params.get("taints") or ()),
            "tags": dict(params.get("tags") or {}),
            "launch_template": dict(params.get("launchTemplate") or {}),
            "capacity_type": params.get("capacityType"),
            "version": version,
            "release_version": params.get("releaseVersion") or RELEASE.format(version=version),
        }
        try:
            made = eks_backends[ACCOUNT][call.region].create_nodegroup(
                cluster_name=params["clusterName"],
                node_role=params["nodeRole"],
                nodegroup_name=params["nodegroupName"],
                subnets=list(params["subnets"]),
                **named,
            )
        except EKSError as refused:
            raise as_refused(refused) from None
        made.launch_template = named["launch_template"] or None
        made.instance_types = _types(params, call.region, made)
        made.update_config = params.get("updateConfig") or {"maxUnavailable": 1}
        made.node_repair_config = params.get("nodeRepairConfig")
        made.health = {"issues": []}
        groups.make(call)
        self._start(call, made)
        return {"nodegroup": shown(made)}

    def _start(self, call: Call, group: Nodegroup) -> None:
        """Launches the first instances and waits for their nodes."""
        data = template_data(call.region, group.launch_template or {})
        problem = why_not(call.region, _cluster(call), group, data)
        if problem is None and (said := self.scaling.why_fewer(call.region, group)):
            problem = (NO_INSTANCES, said)
        if problem is not None:
            name = groups.names(group)[0]
            group.status = "CREATE_FAILED"
            group.health = {"issues": [{"code": problem[0], "message": problem[1], "resourceIds": [name]}]}

    def update_config(self, parts: Parts, call: Call) -> Item:
        """Labels, taints, sizes and how to update, on the nodes that there are."""
        group, params = _active(call), call.params
        names = {
            "labels": "labels",
            "taints": "taints",
            "scalingConfig": "scaling_config",
            "updateConfig": "update_config",
            "nodeRepairConfig": "node_repair_config",
        }
        eks_backends[ACCOUNT][call.region].update_nodegroup_config(
            params["clusterName"],
            params["nodegroupName"],
            **{ours: params.get(theirs) for theirs, ours in names.items()},
        )
        groups.resize(call)
        if "scalingConfig" in params:
            self.scaling.resized(call.region, group)
        return {"update": update_of(parts, "ConfigUpdate", {name: params[name] for name in names if name in params})}

    def update_version(self, parts: Parts, call: Call) -> Item:
        """Other nodes, of another version, AMI or launch template. A pod that does not leave in time fails it."""
        group, params = _active(call), call.params
        given = {name: params[name] for name in ("version", "releaseVersion", "launchTemplate") if params.get(name)}
        version = str(params.get("version") or group.version)
        if self.scaling.instances(call.region, group) and not params.get("force"):
            late = [seconds for start, seconds in self.drains.items() if str(group.nodegroup_name).startswith(start)]
            if late and max(late) > DRAIN_S:
                failed = error("pod-eviction", group=group.nodegroup_name)
                problem = {"errorCode": failed.code, "errorMessage": failed.message, "resourceIds": [_node(group)]}
                return {"update": update_of(parts, "VersionUpdate", given, [problem])}
        group.version = version
        if params.get("releaseVersion") or params.get("version"):
            group.release_version = params.get("releaseVersion") or RELEASE.format(version=version)
        if params.get("launchTemplate"):
            group.launch_template = {**(group.launch_template or {}), **params["launchTemplate"]}
        return {"update": update_of(parts, "VersionUpdate", given)}

    def delete(self, parts: Parts, call: Call) -> Item:
        """The end of a group and of its instances."""
        group = find(call)
        try:
            eks_backends[ACCOUNT][call.region].delete_nodegroup(call.params["clusterName"], group.nodegroup_name)
        except EKSError as refused:
            raise as_refused(refused) from None
        groups.end(call)
        return {"nodegroup": {**shown(group), "status": "DELETING"}}

    def nodes(self, region: str) -> list[Item]:
        """The nodes of all groups of a region: their instances, as far as they have joined."""
        found: list[Item] = []
        for cluster in eks_backends[ACCOUNT][region].clusters.values():
            for group in cluster.nodegroups.values():
                if why_not(region, cluster, group, template_data(region, group.launch_template or {})) is None:
                    own = nodes_of(region, group, self.scaling.instances(region, group))
                    found += [{**node, "cluster": cluster.name} for node in own]
        return found


def find(call: Call) -> Nodegroup:
    """The live group that a call names; raises `Error`."""
    name = str(call.params["nodegroupName"])
    found = _cluster(call).nodegroups.get(name)
    if found is None:
        raise Error(404, "ResourceNotFoundException", f"No node group found for name: {name}.")
    return found


def with_arn(region: str, arn: str) -> Nodegroup | None:
    """The live group with this ARN."""
    found = (group for one in eks_backends[ACCOUNT][region].clusters.values() for group in one.nodegroups.values())
    return next((group for group in found if group.arn == arn), None)


def _active(call: Call) -> Nodegroup:
    group = find(call)
    if group.status != "ACTIVE":
        raise error("group-not-active")
    return group


def _cluster(call: Call) -> Any:
    return clusters.find(call, "clusterName")


def _types(params: Mapping[str, Any], region: str, group: Nodegroup) -> list[str]:
    """None of its own where the launch template names the type. t3.medium is EKS's default."""
    if template_data(region, group.launch_template or {}).get("InstanceType"):
        return []
    return list(params.get("instanceTypes") or ["t3.medium"])


def _node(group: Nodegroup) -> str:
    return f"ip-10-0-0-1.{group.region}.compute.internal"


def shown(group: Any) -> Item:
    """A group as DescribeNodegroup shows it."""
    found = {
        "nodegroupName": group.nodegroup_name,
        "nodegroupArn": group.arn,
        "clusterName": group.cluster_name,
        "version": group.version,
        "releaseVersion": group.release_version,
        "createdAt": group.created_at.timestamp(),
        "modifiedAt": group.modified_at.timestamp(),
        "status": group.status,
        "capacityType": group.capacity_type,
        "scalingConfig": group.scaling_config,
        "instanceTypes": group.instance_types,
        "subnets": group.subnets,
        "amiType": group.ami_type,
        "nodeRole": group.node_role,
        "labels": group.labels,
        "taints": group.taints,
        "resources": {"autoScalingGroups": group.resources["autoScalingGroups"]},
        "health": group.health,
        "updateConfig": group.update_config,
        "nodeRepairConfig": group.node_repair_config,
        "launchTemplate": group.launch_template,
        "tags": group.tags,
    }
    return {name: value for name, value in found.items() if value is not None}
