"""A stand-in for cluster-autoscaler, whose Go module is not to be had everywhere. It says so in all that it prints.

It reads the real ConfigMap of the priority expander and the pods that the real scheduler has refused, orders machines
from the Auto Scaling groups of an emulated AWS as the role of the autoscaler's own pods, and adds the node that comes.
As in kubernetes/autoscaler 1.35.0:

- expander/priority/priority.go: `parsePrioritiesYAMLString` (an int to a list of regular expressions), `BestOptions`
  (the groups of the highest priority that any pattern is found in; no group of another while there is one).
- cloudprovider/aws/aws_cloud_provider.go: a node group's id is the name of its Auto Scaling group.
- cloudprovider/aws/auto_scaling_groups.go `isNodeGroupAvailable`: a group whose newest activity since the order has
  failed is short; its order is taken back, and the group is backed off.
- utils/backoff/exponential_backoff.go: for 5 minutes, doubled at each failure in a row to 30 at most.
- core/podlistprocessor/filter_out_expendable.go: pods with a priority below -10 get no node.
- the scheduler's own predicates: node selector, required node affinity, taints, requests.

It does not: scale down, wait for a late node, estimate several pods at once, balance similar groups, heed pod affinity,
volumes or DRA, or choose among the groups of one priority by waste (it takes the first by name).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import yaml
from kubernetes.utils.quantity import parse_quantity

from tools.kubernetes.nodes import fake_node

NAME, KEY = "cluster-autoscaler-priority-expander", "priorities"
SAYS = "stand-in for cluster-autoscaler"
BACKOFF_S, LONGEST_BACKOFF_S = 300.0, 1800.0
#: `--expendable-pods-priority-cutoff`.
CUTOFF = -10
#: Effects of taints that keep a pod away.
KEEPS_AWAY = ("NoSchedule", "NoExecute")


class PriorityExpander:
    """The expander with one ConfigMap."""

    def __init__(self, config_map: Mapping[str, Any]) -> None:
        if (config_map["metadata"]["name"], config_map["metadata"]["namespace"]) != (NAME, "kube-system"):
            raise ValueError(f"the autoscaler reads {NAME} in kube-system alone")
        config = yaml.safe_load(config_map["data"][KEY])
        if not config or any(type(priority) is not int for priority in config):
            raise ValueError("Go parses it into map[int][]string")
        if not all(isinstance(pattern, str) for patterns in config.values() for pattern in patterns):
            raise ValueError("Go parses it into map[int][]string")
        self._patterns = {priority: [re.compile(one) for one in patterns] for priority, patterns in config.items()}

    def priority(self, group: str) -> int:
        """The group's highest priority; -1 where no pattern matches."""
        found = (number for number, patterns in self._patterns.items() if any(one.search(group) for one in patterns))
        return max(found, default=-1)

    def best(self, groups: Iterable[str]) -> list[str]:
        """The groups that are left for the next expander."""
        options = list(groups)
        most = max(map(self.priority, options), default=-1)
        return [group for group in options if self.priority(group) == most]


class Autoscaler:
    """Buys a node, as the role of its pods: one order after another until a node comes."""

    def __init__(
        self,
        expander: PriorityExpander,
        scaling: Any,
        groups: Iterable[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.expander, self._scaling, self._groups, self._clock = expander, scaling, sorted(groups), clock
        self._backed_off: dict[str, tuple[float, float]] = {}
        """Group to the time at which it is tried again, and for how long it was backed off."""

    def forgive(self) -> None:
        """As if every backoff had passed."""
        self._backed_off.clear()

    def scale_up(self, fitting: Callable[[str], bool] = lambda group: True) -> tuple[list[str], str | None]:
        """The groups in which it tried in vain, in order, and the one that gave a node; only `fitting` groups."""
        failed: list[str] = []
        while options := [group for group in self._groups if fitting(group) and not self._waits(group)]:
            group = self.expander.best(options)[0]
            before = self._desired(group)
            self._scaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=before + 1)
            newest = self._scaling.describe_scaling_activities(AutoScalingGroupName=group)["Activities"][0]
            if newest["StatusCode"] != "Failed":
                self._backed_off.pop(group, None)
                return failed, group
            self._scaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=before)
            last = self._backed_off.get(group, (0.0, 0.0))[1]
            lasts = min(2 * last, LONGEST_BACKOFF_S) or BACKOFF_S
            self._backed_off[group] = (self._clock() + lasts, lasts)
            failed.append(group)
        return failed, None

    def _waits(self, group: str) -> bool:
        return self._clock() < self._backed_off.get(group, (0.0, 0.0))[0]

    def _desired(self, group: str) -> int:
        (found,) = self._scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"]
        return int(found["DesiredCapacity"])


class ClusterApi(Protocol):
    """What it asks of the API server."""

    def list(self, api_version: str, kind: str, namespace: str | None = None, selector: str = "") -> list[Any]:
        """Objects of a kind."""

    def create(self, manifest: dict[str, Any]) -> Any:
        """Creates an object."""


@dataclass(frozen=True)
class NodeTemplate:
    """What a node of a group will be: what the autoscaler reads from its launch template and the group's tags."""

    allocatable: Mapping[str, str]
    labels: Mapping[str, str]
    taints: tuple[Mapping[str, str], ...]

    def carries(self, pod: Mapping[str, Any]) -> bool:
        """Whether the scheduler would put the pod on such a node while it is empty."""
        spec = pod["spec"]
        labels = self.labels.items()
        terms = (
            spec.get("affinity", {})
            .get("nodeAffinity", {})
            .get("requiredDuringSchedulingIgnoredDuringExecution", {})
            .get("nodeSelectorTerms", [{"matchExpressions": []}])
        )
        return (
            labels >= (spec.get("nodeSelector") or {}).items()
            and any(self._matches(term) for term in terms)
            and all(_tolerated(taint, spec.get("tolerations", ())) for taint in self.taints)
            and all(parse_quantity(self.allocatable.get(name, 0)) >= amount for name, amount in _requests(spec).items())
        )

    def _matches(self, term: Mapping[str, Any]) -> bool:
        if term.keys() - {"matchExpressions"} or any(one["operator"] != "In" for one in term["matchExpressions"]):
            raise NotImplementedError(f"the {SAYS} knows matchExpressions with In alone: {term}")
        return all(self.labels.get(one["key"]) in one["values"] for one in term["matchExpressions"])


def _tolerated(taint: Mapping[str, str], tolerations: Iterable[Mapping[str, str]]) -> bool:
    return taint["effect"] not in KEEPS_AWAY or any(
        one.get("key") in (None, taint["key"])
        and one.get("effect") in (None, taint["effect"])
        and (one.get("operator") == "Exists" or one.get("value", "") == taint.get("value", ""))
        for one in tolerations
    )


def _requests(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The sum of the containers' requests."""
    total: dict[str, Any] = {}
    for container in spec["containers"]:
        for name, amount in (container.get("resources", {}).get("requests") or {}).items():
            total[name] = total.get(name, 0) + parse_quantity(amount)
    return total


class StandIn:
    """The whole autoscaler over a real API server; `turn` is one of its loops."""

    def __init__(self, api: ClusterApi, autoscaler: Autoscaler, templates: Mapping[str, NodeTemplate]) -> None:
        """`templates` are by the name of the Auto Scaling group."""
        self._api, self._autoscaler, self._templates = api, autoscaler, templates
        self._answered: set[str] = set()
        """Uids of pods for which a node has come."""
        self._count = 0

    def turn(self) -> list[str]:
        """Buys a node for each pod that the scheduler has refused and any group's node would carry."""
        (config,) = [one for one in self._api.list("v1", "ConfigMap", "kube-system") if one["metadata"]["name"] == NAME]
        self._autoscaler.expander = PriorityExpander(config)
        said = []
        for pod in self._api.list("v1", "Pod"):
            if pod["metadata"]["uid"] in self._answered or not _waits_for_a_node(pod):
                continue
            carrying = {name for name, template in self._templates.items() if template.carries(pod)}
            failed, gave = self._autoscaler.scale_up(carrying.__contains__)
            said += [f"{SAYS}: {group} has no machines for {pod['metadata']['name']}" for group in failed]
            if gave is not None:
                self._answered.add(pod["metadata"]["uid"])
                said.append(f"{SAYS}: {gave} gives {self._add_node(gave)} for {pod['metadata']['name']}")
        return said

    def _add_node(self, group: str) -> str:
        self._count += 1
        template, name = self._templates[group], f"{group[4:-37].replace('_', '-')}-{self._count}".lower()
        taints = [dict(taint) for taint in template.taints]
        self._api.create(fake_node(name, dict(template.allocatable), labels=dict(template.labels), taints=taints))
        return name


def _waits_for_a_node(pod: Mapping[str, Any]) -> bool:
    refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    status = pod.get("status", {})
    return (
        "deletionTimestamp" not in pod["metadata"]
        and not status.get("nominatedNodeName")
        and pod["spec"].get("priority", 0) >= CUTOFF
        and any(refused.items() <= condition.items() for condition in status.get("conditions") or ())
    )
