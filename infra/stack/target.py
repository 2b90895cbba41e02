"""Where a stack runs, as a value with properties: nothing else in the project compares a target's name.

A fourth target needs a row of `TARGETS`, its name in `TargetName`, and its components in `infra/targets.py`. What only
AWS has (a region, the address plan, EKS's own prices, the preflight) depends on `makes_cluster`; a target that makes a
cluster in another cloud needs its own version of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

TargetName = Literal["eks", "kubernetes", "local"]


@dataclass(frozen=True)
class Target:
    """What a target makes, what it costs, and who chooses its nodes.

    `makes_cluster`: the run makes the network and the cluster. `chooses_nodes`: a pool can leave its instance types
    to the plan. `priced`: nodes cost USD per hour. `on_this_machine`: the run makes only processes here.
    `longest_drain_s`: seconds that a pod of a drained node may take to end, where the cluster has a limit.
    """

    name: TargetName
    makes_cluster: bool = False
    chooses_nodes: bool = False
    priced: bool = True
    on_this_machine: bool = False
    longest_drain_s: int | None = None

    def __str__(self) -> str:
        return self.name


#: EKS waits 15 minutes for the pods of a node that it updates; then the whole update fails (PodEvictionFailure). Its
#: own work on the node, and a budget that holds an eviction back until another worker is ready (a node and its image: 5
#: to 6 minutes), are in these minutes too.
#: https://docs.aws.amazon.com/eks/latest/userguide/managed-node-update-behavior.html ("Upgrade phase")
EKS_DRAIN_S: Final = 9 * 60

TARGETS: Final[Mapping[TargetName, Target]] = {
    "eks": Target("eks", makes_cluster=True, chooses_nodes=True, longest_drain_s=EKS_DRAIN_S),
    "kubernetes": Target("kubernetes"),
    "local": Target("local", priced=False, on_this_machine=True),
}
