"""What AWS refuses and moto takes, from `rules.csv`: quotas, order of sizes, fields that EKS sets itself, zones.

A rule looks at a call that its caller may make, before moto gets it. Its words are in the table, with the source.
Shortage of instances is a fault that a test switches on: `Rules.short_of(("g5.xlarge", "us-west-2a"))`, and
`("g5.xlarge", "*", "spot")` for one way to buy.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from moto.ec2.models import ec2_backends
from moto.eks.models import eks_backends

from tools.cloud.answers import Error
from tools.cloud.callers import ACCOUNT
from tools.cloud.groups import backend_of, named
from tools.cloud.wire import Call

TABLE = Path(__file__).with_name("rules.csv")
OBJECT_TAGS = 10
#: Codes of quotas in Service Quotas, with a new account's values; vCPUs are as in one that had them raised.
#: https://docs.aws.amazon.com/general/latest/gr/eks.html#limits_eks
#: https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html
ELASTIC_IPS, NODE_GROUPS = "L-0263D0A3", "L-6D54EA21"
USUAL: Mapping[str, float] = {ELASTIC_IPS: 5.0, NODE_GROUPS: 30.0}
VCPUS = 1024.0
#: Kubernetes minor versions for new clusters, the oldest first. Our own list, not AWS's of the day.
VERSIONS = ("1.32", "1.33", "1.34", "1.35", "1.36")
ANY = "*"
#: "The launch template can't include SubnetId, IamInstanceProfile, RequestSpotInstances, HibernationOptions, or
#: TerminateInstances"; EC2 calls the last one by the name here. A Capacity Block is named in `InstanceMarketOptions`.
REFUSED_FIELDS = ("IamInstanceProfile", "HibernationOptions", "InstanceInitiatedShutdownBehavior")

Params = Mapping[str, Any]


@dataclass
class Rules:
    """The rules, and what the account is short of: (instance type, zone, purchase), with `*` for every one."""

    #: Quotas that differ from the usual ones, by code.
    quotas: dict[str, float] = field(default_factory=dict)
    short: set[tuple[str, str, str]] = field(default_factory=set)
    #: Seconds that a call takes longer, by `service:Operation`, with `*` for every call.
    slow: dict[str, float] = field(default_factory=dict)

    def delay(self, call: Call) -> float:
        """Seconds that the call takes longer."""
        return self.slow.get(f"{call.service}:{call.operation}", self.slow.get("*", 0.0))

    def short_of(self, *missing: tuple[str, str] | tuple[str, str, str]) -> None:
        """From now on these types are short in these zones, however or as they are bought, and no others."""
        self.short = {(one[0], one[1], one[2] if len(one) > 2 else ANY) for one in missing}

    def check(self, call: Call) -> None:
        """Raises `Error` as AWS refuses the call."""
        checks = _CHECKS.get(f"{call.service}:{call.operation}", ())
        for check in checks:
            check(self, call)

    def quota(self, code: str) -> float:
        """The account's value of a quota."""
        return self.quotas.get(code, USUAL.get(code, VCPUS))

    def is_short(self, instance_type: str, zone: str, purchase: str = "on-demand") -> bool:
        """Whether no instance of the type starts in the zone, bought in this way."""
        return any((instance_type, z, p) in self.short for z in (zone, ANY) for p in (purchase, ANY))


def error(rule: str, **values: object) -> Error:
    """AWS's answer to a violation."""
    row = rows()[rule]
    return Error(int(row["status"]), row["code"], row["message"].format(**values))


@cache
def rows() -> dict[str, dict[str, str]]:
    """The table, by rule."""
    with TABLE.open(encoding="utf-8", newline="") as stream:
        lines = (line for line in stream if not line.startswith("#"))
        return {row["rule"]: row for row in csv.DictReader(lines)}


# --- S3, EC2 ---------------------------------------------------------------------------------------------


def _object_tags(_: Rules, call: Call) -> None:
    tagging = call.params.get("Tagging")
    tags = (
        tagging.get("TagSet") or []
        if isinstance(tagging, Mapping)
        else parse_qsl(tagging or "", keep_blank_values=True)
    )
    if len(tags) > OBJECT_TAGS:
        raise error("object-tags")


def _elastic_ips(rules: Rules, call: Call) -> None:
    if len(ec2_backends[ACCOUNT][call.region].addresses) + 1 > rules.quota(ELASTIC_IPS):
        raise error("elastic-ips")


def _instance_capacity(rules: Rules, call: Call) -> None:
    """RunInstances in a subnet's zone, or in any where the type is not short everywhere."""
    kind = str(call.params.get("InstanceType") or "")
    zone = _zones(call.region, [str(call.params["SubnetId"])])[0] if call.params.get("SubnetId") else ANY
    zone = str((call.params.get("Placement") or {}).get("AvailabilityZone") or zone)
    if rules.is_short(kind, zone):
        raise error("instance-capacity", instance_type=kind, zone=zone)


def _zones(region: str, subnets: Sequence[str]) -> list[str]:
    """Zones of the subnets that exist, in their order."""
    found = ec2_backends[ACCOUNT][region].describe_subnets()
    by_id = {subnet.id: str(subnet.availability_zone) for subnet in found}
    return [by_id[subnet] for subnet in subnets if subnet in by_id]


# --- node groups -----------------------------------------------------------------------------------------


def _sizes_of_new(_: Rules, call: Call) -> None:
    sizes = call.params.get("scalingConfig") or {}
    least, most = int(sizes.get("minSize", 1)), int(sizes.get("maxSize", 2))
    desired = int(sizes.get("desiredSize", 2))
    if least > desired:
        raise error("desired-below-min")
    if desired > most:
        raise error("desired-above-max")
    if most < 1:
        raise error("max-size")


def _sizes_of_live(_: Rules, call: Call) -> None:
    """An update names some sizes; the others are as they are."""
    live = _group(call)
    sizes = {**(live.scaling_config if live else {}), **(call.params.get("scalingConfig") or {})}
    if not sizes:
        return
    least, desired, most = (int(sizes.get(name, 0)) for name in ("minSize", "desiredSize", "maxSize"))
    if least > desired:
        raise error("live-below-min", minimum=least, desired=desired)
    if desired > most:
        raise error("desired-above-max")


def _cluster(region: str, name: str) -> Any:
    return eks_backends[ACCOUNT][region].clusters.get(name)


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _group(call: Call) -> Any:
    cluster = _cluster(call.region, call.params["clusterName"])
    return cluster.nodegroups.get(call.params["nodegroupName"]) if cluster else None


def _template(_: Rules, call: Call) -> None:
    data = _template_data(call)
    if data.get("InstanceType") and call.params.get("instanceTypes"):
        raise error("two-types")
    for name in REFUSED_FIELDS:
        if data.get(name):
            raise error("template-fields", field=name)
    if (data.get("InstanceMarketOptions") or {}).get("MarketType") == "spot":
        raise error("template-fields", field="RequestSpotInstances")
    for interface in data.get("NetworkInterfaces") or ():
        if interface.get("SubnetId"):
            raise error("template-fields", field="SubnetId")


def _template_data(call: Call) -> Params:
    return template_data(call.region, call.params.get("launchTemplate") or {})


def template_data(region: str, wanted: Params) -> Params:
    """The data of the launch template version that a node group names; empty without one."""
    backend = ec2_backends[ACCOUNT][region]
    id = wanted.get("id") or backend.launch_template_name_to_ids.get(str(wanted.get("name")))
    template = backend.launch_templates.get(id) if id else None
    if template is None:
        return {}
    version = str(wanted.get("version") or "$Default")
    number = {"$Default": template.default_version_number, "$Latest": template.latest_version_number}.get(version)
    data: Params = template.get_version(int(number or version)).data
    user_data = data.get("UserData")
    if user_data and not isinstance(user_data, str):  # moto keeps that of a first version in a type of its own
        return {**data, "UserData": user_data.as_bytes().decode()}
    return data


def types_of(region: str, node_group: Any) -> list[str]:
    """The instance types of a live node group, its own or its launch template's."""
    data = template_data(region, node_group.launch_template or {})
    return list(node_group.instance_types or ([data["InstanceType"]] if data.get("InstanceType") else []))


def zones_of(region: str, node_group: Any) -> list[str]:
    """The zones of a live node group's subnets."""
    return _zones(region, list(node_group.subnets))


def bought_as(region: str, node_group: Any) -> str:
    """How a live node group buys, in the stack file's words: a reservation is on demand to EKS, by its template."""
    if node_group.capacity_type != "ON_DEMAND":
        return str(node_group.capacity_type).lower().replace("_", "-")
    specification = template_data(region, node_group.launch_template or {}).get("CapacityReservationSpecification")
    return "reservation" if (specification or {}).get("CapacityReservationTarget") else "on-demand"


def _group_quota(rules: Rules, call: Call) -> None:
    """How many node groups a cluster has."""
    cluster = _cluster(call.region, call.params["clusterName"])
    if cluster and len(cluster.nodegroups) + 1 > (limit := rules.quota(NODE_GROUPS)):
        raise error("node-groups", limit=f"{limit:g}")


def _versions_of_nodes(_: Rules, call: Call) -> None:
    """Nodes have the cluster's version or, until they are updated, the one before; a release is of its version."""
    cluster, group = _cluster(call.region, call.params["clusterName"]), _group(call)
    if cluster is None:
        return
    wanted = str(call.params.get("version") or (group.version if group else cluster.version))
    release = str(call.params.get("releaseVersion") or "")
    if group is None and wanted != cluster.version:
        raise error("new-group-version", wanted=wanted, version=cluster.version)
    if group is not None and _minor(wanted) > _minor(cluster.version):
        raise error("group-above-cluster", wanted=wanted, version=cluster.version)
    if group is not None and _minor(wanted) < _minor(group.version):
        raise error("no-way-back", wanted=wanted, version=group.version)
    if release and not release.startswith(f"{wanted}."):
        raise error("release-version", release=release, version=wanted)


def _same_template(_: Rules, call: Call) -> None:
    wanted, group = call.params.get("launchTemplate"), _group(call)
    if not wanted or group is None:
        return
    had = group.launch_template or {}
    if not any(wanted.get(key) and wanted[key] == had.get(key) for key in ("id", "name")):
        raise error("same-template")


def _offered(_: Rules, call: Call) -> None:
    """At least one of the types is there in the subnets' zones."""
    own = _template_data(call).get("InstanceType")
    types = [own] if own else list(call.params.get("instanceTypes") or ())
    zones = sorted(set(_zones(call.region, call.params["subnets"])))
    offers = ec2_backends[ACCOUNT][call.region].describe_instance_type_offerings("availability-zone", {})
    there = {(one["InstanceType"], one["Location"]) for one in offers}
    for kind in types:
        if not any((kind, zone) in there for zone in zones):
            raise error("not-offered", instance_type=kind, zones=", ".join(zones))


def _block(_: Rules, call: Call) -> None:
    if call.params.get("capacityType") != "CAPACITY_BLOCK":
        return
    data = _template_data(call)
    target = (data.get("CapacityReservationSpecification") or {}).get("CapacityReservationTarget")
    market = (data.get("InstanceMarketOptions") or {}).get("MarketType")
    if market != "capacity-block" or not target or not data.get("InstanceType"):
        raise error("capacity-block")


# --- Auto Scaling groups ---------------------------------------------------------------------------------


def _group_is_there(_: Rules, call: Call) -> None:
    known = backend_of(call.region).autoscaling_groups
    for name in named(call):
        if name not in known:
            raise error("group-absent", group=name)


# --- clusters --------------------------------------------------------------------------------------------


def _two_zones(_: Rules, call: Call) -> None:
    subnets = (call.params.get("resourcesVpcConfig") or {}).get("subnetIds") or []
    if len(set(_zones(call.region, subnets))) < 2:
        raise error("two-zones")


def _same_zones(_: Rules, call: Call) -> None:
    wanted = (call.params.get("resourcesVpcConfig") or {}).get("subnetIds")
    cluster = eks_backends[ACCOUNT][call.region].clusters.get(call.params["name"])
    if not wanted or cluster is None:
        return
    zones = sorted(set(_zones(call.region, wanted)))
    made = sorted(set(_zones(call.region, cluster.resources_vpc_config["subnetIds"])))
    if zones != made:
        raise error("same-zones", zones=", ".join(zones), made=", ".join(made))


def _known_version(_: Rules, call: Call) -> None:
    wanted = call.params.get("version")
    if wanted and wanted not in VERSIONS:
        raise error("unknown-version")


def _next_version(_: Rules, call: Call) -> None:
    """One minor version at a time, and only with nodes that have the present one."""
    cluster, wanted = _cluster(call.region, call.params["name"]), str(call.params["version"])
    if cluster is None:
        return
    major, minor = _minor(cluster.version)
    if _minor(wanted) != (major, minor + 1):
        raise error("one-minor", old=cluster.version, new=wanted)
    if behind := [group.nodegroup_name for group in cluster.nodegroups.values() if group.version != cluster.version]:
        raise error("nodes-first", groups=", ".join(sorted(behind)), version=cluster.version)


def _one_update(_: Rules, call: Call) -> None:
    kinds = [
        name for name, value in call.params.items() if name not in ("name", "clientRequestToken") and value is not None
    ]
    config = call.params.get("resourcesVpcConfig") or {}
    network, access = {"subnetIds", "securityGroupIds"} & set(config), set(config) - {"subnetIds", "securityGroupIds"}
    if len(kinds) != 1 or (network and access):
        raise error("one-update")


def _some_change(_: Rules, call: Call) -> None:
    cluster, wanted = _cluster(call.region, call.params["name"]), call.params.get("resourcesVpcConfig") or {}
    if cluster is None or not set(wanted) & {"endpointPublicAccess", "endpointPrivateAccess", "publicAccessCidrs"}:
        return
    had = cluster.resources_vpc_config
    if all(had.get(name) == value for name, value in wanted.items()):
        raise error(
            "no-change",
            private=str(had["endpointPrivateAccess"]).lower(),
            public=str(had["endpointPublicAccess"]).lower(),
            cidrs=", ".join(had["publicAccessCidrs"]),
        )


_CHECKS: Mapping[str, Sequence[Callable[[Rules, Call], None]]] = {
    "s3:PutObject": (_object_tags,),
    "s3:PutObjectTagging": (_object_tags,),
    "s3:CreateMultipartUpload": (_object_tags,),
    "ec2:AllocateAddress": (_elastic_ips,),
    "ec2:RunInstances": (_instance_capacity,),
    "autoscaling:CreateOrUpdateTags": (_group_is_there,),
    "autoscaling:DeleteTags": (_group_is_there,),
    "autoscaling:SetDesiredCapacity": (_group_is_there,),
    "eks:CreateCluster": (_known_version, _two_zones),
    "eks:UpdateClusterConfig": (_one_update, _same_zones, _some_change),
    "eks:UpdateClusterVersion": (_known_version, _next_version),
    "eks:CreateNodegroup": (_sizes_of_new, _template, _block, _offered, _versions_of_nodes, _group_quota),
    "eks:UpdateNodegroupConfig": (_sizes_of_live,),
    "eks:UpdateNodegroupVersion": (_same_template, _versions_of_nodes),
}
