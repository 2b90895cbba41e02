"""Sizes, instances and activities of the Auto Scaling groups of node groups; their names and tags are in `groups.py`.

A group that wants more instances than it has tries to launch one, again each time it is looked at. Where EC2 has none
of its types in its zones, the try is an activity with status `Failed`, which is what cluster-autoscaler looks for.
https://docs.aws.amazon.com/autoscaling/ec2/userguide/ts-as-capacity.html
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import escape

from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.eks.models import eks_backends

from modelfleet.infra.catalog import Quota, default_catalog
from tools.cloud.answers import REQUEST_ID, Answer, as_xml
from tools.cloud.callers import ACCOUNT
from tools.cloud.rules import Rules, bought_as, error, types_of, zones_of
from tools.cloud.wire import Call

NAMESPACE = "http://autoscaling.amazonaws.com/doc/2011-01-01/"


@dataclass
class Group:
    """What a group has; what it may have is its node group's."""

    desired: int
    #: Their types, and beside them their zones; the oldest first.
    instances: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    #: The newest first.
    activities: list[dict[str, str]] = field(default_factory=list)


class Scaling:
    """The Auto Scaling groups of all node groups."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._groups: dict[tuple[str, str], Group] = {}
        self._lock = threading.RLock()
        self._operations: Mapping[str, Callable[[Call], str]] = {
            "DescribeAutoScalingGroups": self._describe,
            "DescribeScalingActivities": self._activities,
            "SetDesiredCapacity": self._set_desired,
        }

    def answer(self, call: Call) -> Answer | None:
        """The answer about groups of node groups; None for other groups and operations, which moto has."""
        operation = self._operations.get(call.operation)
        if operation is None or not self._named(call):
            return None
        with self._lock:
            result = f"<{call.operation}Result>{operation(call)}</{call.operation}Result>"
        ending = f"<ResponseMetadata><RequestId>{REQUEST_ID}</RequestId></ResponseMetadata>"
        name = f"{call.operation}Response"
        return as_xml(f'<{name} xmlns="{NAMESPACE}">{result}{ending}</{name}>')

    def forget(self) -> None:
        """Loses everything."""
        with self._lock:
            self._groups.clear()

    def instances(self, region: str, node_group: Any) -> list[str]:
        """The types of a group's instances, after another try to have as many as it wants."""
        with self._lock:
            group = self._of(region, node_group)
            self._launch(region, node_group, group)
            return list(group.instances)

    def why_fewer(self, region: str, node_group: Any) -> str:
        """Why a group has fewer instances than it wants; "" if it has them."""
        wanted = int(node_group.scaling_config["desiredSize"])
        if len(self.instances(region, node_group)) >= wanted:
            return ""
        return self._of(region, node_group).activities[0]["StatusMessage"]

    def resized(self, region: str, node_group: Any) -> None:
        """Takes the sizes that EKS has set."""
        with self._lock:
            self._resize(region, node_group, int(node_group.scaling_config["desiredSize"]))

    def _named(self, call: Call) -> list[Any]:
        """The node groups whose groups a call names."""
        wanted = call.params.get("AutoScalingGroupNames") or [call.params.get("AutoScalingGroupName")]
        return [group for group in node_groups(call.region) if group_name(group) in wanted]

    def _of(self, region: str, node_group: Any) -> Group:
        key = (region, str(node_group.arn))
        made = Group(int(node_group.scaling_config["desiredSize"]))
        return self._groups.setdefault(key, made)

    def _set_desired(self, call: Call) -> str:
        (node_group,) = self._named(call)
        wanted, sizes = int(call.params["DesiredCapacity"]), node_group.scaling_config
        least, most = int(sizes["minSize"]), int(sizes["maxSize"])
        if not least <= wanted <= most:
            said = f"below min value {least}" if wanted < least else f"above max value {most}"
            raise error("desired-outside", desired=wanted, said=said)
        self._resize(call.region, node_group, wanted)
        node_group.scaling_config["desiredSize"] = wanted  # EKS shows the size that the group has
        return ""

    def _resize(self, region: str, node_group: Any, wanted: int) -> None:
        group = self._of(region, node_group)
        group.desired = wanted
        del group.instances[wanted:], group.places[wanted:]
        self._launch(region, node_group, group)

    def _launch(self, region: str, node_group: Any, group: Group) -> None:
        """Instances until there are as many as desired, or until EC2 refuses one."""
        purchase = bought_as(region, node_group)
        kinds, zones = types_of(region, node_group), zones_of(region, node_group)
        self._rebalance(group, kinds, zones, purchase)
        while len(group.instances) < group.desired:
            emptiest = sorted(zones, key=group.places.count)
            found = [(k, z) for k in kinds for z in emptiest if not self._rules.is_short(k, z, purchase)]
            started = [one for one in found if not self._above_quota(region, one[0], purchase)]
            activity = _activity("Launching a new EC2 instance")
            if not started:
                said = self._why_none(kinds, zones, purchase, enough=bool(found))
                group.activities.insert(0, {**activity, "StatusCode": "Failed", "StatusMessage": said})
                return
            group.instances.append(started[0][0])
            group.places.append(started[0][1])
            group.activities.insert(0, {**activity, "StatusCode": "Successful", "StatusMessage": ""})

    def _rebalance(self, group: Group, kinds: list[str], zones: list[str], purchase: str) -> None:
        """Starts an instance in the emptiest zone that has machines, and ends one of the fullest, loaded or not.

        The process AZRebalance; EKS heeds no disruption budget then.
        """
        able = [(k, z) for z in zones for k in kinds if not self._rules.is_short(k, z, purchase)]
        while able and group.places:
            kind, emptiest = min(able, key=lambda one: group.places.count(one[1]))
            fullest = max(zones, key=group.places.count)
            if group.places.count(fullest) - group.places.count(emptiest) < 2:
                return
            oldest = group.places.index(fullest)
            del group.instances[oldest], group.places[oldest]
            group.instances.append(kind)
            group.places.append(emptiest)
            for what in ("Launching a new EC2 instance", "Terminating EC2 instance"):
                cause = f"to balance instances in zones {emptiest} with other zones"
                group.activities.insert(
                    0, {**_activity(what), "Cause": cause, "StatusCode": "Successful", "StatusMessage": ""}
                )

    def _why_none(self, kinds: list[str], zones: list[str], purchase: str, *, enough: bool) -> str:
        """Auto Scaling's words: EC2 has none of the types, or (`enough`) the account may not have more of them."""
        if enough:
            quota = _quota(kinds[0], purchase)
            limit = self._rules.quota(quota.code) if quota else 0
            return error("vcpu-quota", limit=f"{limit:g}").message
        called = "Spot" if purchase == "spot" else "On-Demand"
        return error("node-capacity", purchase=called, instance_type=kinds[0], zone=zones[0]).message

    def _above_quota(self, region: str, kind: str, purchase: str) -> bool:
        """Whether one more instance would be above the account's vCPUs of its family and purchase."""
        quota = _quota(kind, purchase)
        if quota is None:  # a Capacity Block
            return False
        used = sum(
            _vcpus(one)
            for group in node_groups(region)
            if (own := self._groups.get((region, str(group.arn))))
            for one in own.instances
            if _quota(one, bought_as(region, group)) == quota
        )
        return used + _vcpus(kind) > self._rules.quota(quota.code)

    def _describe(self, call: Call) -> str:
        return f"<AutoScalingGroups>{''.join(self._described(call))}</AutoScalingGroups>"

    def _described(self, call: Call) -> Iterator[str]:
        for node_group in self._named(call):
            group, sizes = self._of(call.region, node_group), node_group.scaling_config
            self._launch(call.region, node_group, group)
            zones = zones_of(call.region, node_group)
            instances = (
                {"InstanceId": f"i-{number:017x}", "InstanceType": kind, "AvailabilityZone": group.places[number]}
                | {"LifecycleState": "InService", "HealthStatus": "Healthy", "ProtectedFromScaleIn": "false"}
                for number, kind in enumerate(group.instances)
            )
            yield _member(
                {
                    "AutoScalingGroupName": group_name(node_group),
                    "MinSize": sizes["minSize"],
                    "MaxSize": sizes["maxSize"],
                    "DesiredCapacity": group.desired,
                    "DefaultCooldown": 300,
                    "HealthCheckType": "EC2",
                    "CreatedTime": node_group.created_at.isoformat(),
                },
                f"<AvailabilityZones>{''.join(f'<member>{zone}</member>' for zone in zones)}</AvailabilityZones>",
                f"<Instances>{''.join(_member(one) for one in instances)}</Instances>",
            )

    def _activities(self, call: Call) -> str:
        (node_group,) = self._named(call)
        name, group = group_name(node_group), self._of(call.region, node_group)
        found = (
            _member({"ActivityId": f"{index}", "AutoScalingGroupName": name, "Cause": "desired capacity", **one})
            for index, one in enumerate(group.activities)
        )
        return f"<Activities>{''.join(found)}</Activities>"


def _quota(kind: str, purchase: str) -> Quota | None:
    """A reservation counts as on demand."""
    return default_catalog().quota(kind, {"reservation": "on-demand"}.get(purchase, purchase))


def _vcpus(kind: str) -> int:
    return int(INSTANCE_TYPES[kind]["VCpuInfo"]["DefaultVCpus"])


def _activity(what: str) -> dict[str, str]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"Description": what, "StartTime": now}


def _member(values: Mapping[str, object], *inner: str) -> str:
    texts = (f"<{key}>{escape(str(value))}</{key}>" for key, value in values.items())
    return f"<member>{''.join((*texts, *inner))}</member>"


def node_groups(region: str) -> Iterator[Any]:
    """Every node group of a region, as moto keeps it."""
    for cluster in eks_backends[ACCOUNT][region].clusters.values():
        yield from cluster.nodegroups.values()


def group_name(node_group: Any) -> str:
    """The name of a node group's Auto Scaling group."""
    return str(node_group.resources["autoScalingGroups"][0]["name"])
