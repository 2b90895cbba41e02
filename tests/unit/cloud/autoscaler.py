"""How cluster-autoscaler chooses a node group and gives one up, after its source: kubernetes/autoscaler 1.35.0.

- expander/priority/priority.go: `parsePrioritiesYAMLString` (an int to a list of regular expressions), `BestOptions`
  (the groups of the highest priority that any pattern is found in; no group of another while there is one).
- cloudprovider/aws/aws_cloud_provider.go: a node group's id is the name of its Auto Scaling group.
- cloudprovider/aws/auto_scaling_groups.go `isNodeGroupAvailable`: a group whose newest activity since the order has
  failed is short; its order is taken back, and the group is backed off.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

NAME, KEY = "cluster-autoscaler-priority-expander", "priorities"


class PriorityExpander:
    """The expander with one ConfigMap."""

    def __init__(self, config_map: dict[str, Any]) -> None:
        assert config_map["metadata"]["name"] == NAME and config_map["metadata"]["namespace"] == "kube-system"
        config = yaml.safe_load(config_map["data"][KEY])
        assert config and all(type(priority) is int for priority in config), "Go parses it into map[int][]string"
        assert all(isinstance(pattern, str) for patterns in config.values() for pattern in patterns)
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
    """Buys a node for a waiting pod, as the role of its pods: one order after another until a node comes."""

    def __init__(self, expander: PriorityExpander, scaling: Any, groups: Iterable[str]) -> None:
        self._expander, self._scaling, self._groups = expander, scaling, sorted(groups)
        self.backed_off: set[str] = set()

    def scale_up(self) -> tuple[list[str], str | None]:
        """The groups in which it tried in vain, in order, and the one that gave a node."""
        failed: list[str] = []
        while options := [group for group in self._groups if group not in self.backed_off]:
            group = self._expander.best(options)[0]
            before = self._desired(group)
            self._scaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=before + 1)
            newest = self._scaling.describe_scaling_activities(AutoScalingGroupName=group)["Activities"][0]
            if newest["StatusCode"] != "Failed":
                return failed, group
            self._scaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=before)
            self.backed_off.add(group)
            failed.append(group)
        return failed, None

    def _desired(self, group: str) -> int:
        (found,) = self._scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"]
        return int(found["DesiredCapacity"])
