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

from moto.eks.models import eks_backends

from tools.cloud.answers import REQUEST_ID, Answer, as_xml
from tools.cloud.callers import ACCOUNT
from tools.cloud.rules import Rules, bought_as, error, types_of, zones_of
from tools.cloud.wire import Call

NAMESPACE = "http://autoscaling.amazonaws.com/doc/2011-01-01/"


@dataclass
class Group:
    """What a group has; what it may have is its node group's."""

    desired: int
    instances: list[str] = field(default_factory=list)
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

    def _named(self, call: Call) -> list[Any]:
        """The node groups whose groups a call names."""
        wanted = call.params.get("AutoScalingGroupNames") or [call.params.get("AutoScalingGroupName")]
        return [group for group in node_groups(call.region) if group_name(group) in wanted]

    def _of(self, call: Call, node_group: Any) -> Group:
        key = (call.region, str(node_group.arn))
        made = Group(int(node_group.scaling_config["desiredSize"]))
        return self._groups.setdefault(key, made)

    def _set_desired(self, call: Call) -> str:
        (node_group,) = self._named(call)
        wanted, sizes = int(call.params["DesiredCapacity"]), node_group.scaling_config
        least, most = int(sizes["minSize"]), int(sizes["maxSize"])
        if not least <= wanted <= most:
            said = f"below min value {least}" if wanted < least else f"above max value {most}"
            raise error("desired-outside", desired=wanted, said=said)
        group = self._of(call, node_group)
        group.desired = wanted
        del group.instances[wanted:]
        self._launch(call, node_group, group)
        return ""

    def _launch(self, call: Call, node_group: Any, group: Group) -> None:
        """Instances until there are as many as desired, or until EC2 refuses one."""
        purchase = bought_as(call.region, node_group)
        while len(group.instances) < group.desired:
            kinds, zones = types_of(call.region, node_group), zones_of(call.region, node_group)
            started = [k for k in kinds for z in zones if not self._rules.is_short(k, z, purchase)]
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            activity = {"Description": "Launching a new EC2 instance", "StartTime": now}
            if not started:
                called = "Spot" if purchase == "spot" else "On-Demand"
                said = error("node-capacity", purchase=called, instance_type=kinds[0], zone=zones[0]).message
                group.activities.insert(0, {**activity, "StatusCode": "Failed", "StatusMessage": said})
                return
            group.instances.append(started[0])
            group.activities.insert(0, {**activity, "StatusCode": "Successful", "StatusMessage": ""})

    def _describe(self, call: Call) -> str:
        return f"<AutoScalingGroups>{''.join(self._described(call))}</AutoScalingGroups>"

    def _described(self, call: Call) -> Iterator[str]:
        for node_group in self._named(call):
            group, sizes = self._of(call, node_group), node_group.scaling_config
            self._launch(call, node_group, group)
            zones = zones_of(call.region, node_group)
            instances = (
                {"InstanceId": f"i-{number:017x}", "InstanceType": kind, "AvailabilityZone": zones[0]}
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
        name, group = group_name(node_group), self._of(call, node_group)
        found = (
            _member({"ActivityId": f"{index}", "AutoScalingGroupName": name, "Cause": "desired capacity", **one})
            for index, one in enumerate(group.activities)
        )
        return f"<Activities>{''.join(found)}</Activities>"


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
