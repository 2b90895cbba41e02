"""What a change interrupts that rolls the system nodes: the Ray head, the gateway's pods and the operator move. Pure.

A preview shows such a change as an update of node groups, and says nothing of what runs there.
https://docs.aws.amazon.com/eks/latest/userguide/managed-node-update-behavior.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelfleet.infra.catalog.start_up import start_parts
from modelfleet.infra.planning.plan import ModelPlan, Plan, SystemPlan
from modelfleet.infra.planning.start_up import IMAGE_GIB, UNKNOWN_START_MINUTES

#: How a missing release or tag is worded.
UNSET = "unset"


@dataclass(frozen=True)
class SystemNodes:
    """A node group of the system pool: Kubernetes' minor version, the AMI's release, instance types, the file's tags.

    `release` is None where a stack file does not name one: a live group then keeps its own.
    """

    version: str
    release: str | None
    instance_types: tuple[str, ...]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeChange:
    """A key of the stack file whose change replaces system nodes: its path, what they have and what they will have."""

    path: tuple[str, ...]
    was: str
    will: str


@dataclass(frozen=True)
class SystemRoll:
    """What the roll interrupts, and for about how many minutes; estimates, as the parts of a model's start are.

    `head_minutes` until the next Ray head is ready on another node: until then nothing scales. `gap_minutes` no model
    answers; 0 where the head comes back to its replicas. The `nodes` change one after another, within `least_minutes`
    without open streams and `most_minutes` with streams that last. `stream_minutes` is what a leaving gateway pod gives
    its streams; `one_gateway`: nobody else takes requests then.
    """

    changes: tuple[NodeChange, ...]
    head_minutes: int
    gap_minutes: int
    nodes: int
    least_minutes: int
    most_minutes: int
    stream_minutes: int
    one_gateway: bool

    @property
    def sentence(self) -> str:
        """All but the changes: `the system nodes are replaced, …: …`."""
        gone = (
            f"every replica ends with it, and no model answers for about {self.gap_minutes} min, until the models are "
            "loaded again; set kubernetes.headStorage: valkey in a run before this one"
        )
        kept = "replicas, new requests and open streams go on"
        alone = "its only pod moves too, and new requests fail until the next is ready (gateway.replicas: 2 ends that)"
        return (
            f"the system nodes are replaced, {self.nodes} one after another in {self.least_minutes} to "
            f"{self.most_minutes} min, and the Ray head moves to another: {gone if self.gap_minutes else kept}; "
            f"nothing scales for about {self.head_minutes} min, until the head and the operators are back; gateway: "
            f"{alone if self.one_gateway else 'one pod moves at a time'}, and a stream through it has "
            f"{self.stream_minutes} min to end"
        )


def system_nodes_of(plan: Plan) -> SystemNodes | None:
    """The node groups that a plan wants; None where the stack makes no cluster."""
    if plan.system is None:
        return None
    cluster = plan.config.cluster
    return SystemNodes(cluster.version, cluster.node_release, (plan.system.instance_type,), plan.config.tags)


def system_roll(live: SystemNodes | None, plan: Plan, *, head_survives: bool) -> SystemRoll | None:
    """What follows for a group that is `live` when the plan is applied; None if its nodes stay.

    `head_survives`: the head has a store before this run and after it.
    """
    wanted = system_nodes_of(plan)
    if live is None or wanted is None or plan.system is None:
        return None
    changes = _changes(live, wanted)
    return _roll(plan, plan.system, changes, head_survives=head_survives) if changes else None


def _changes(live: SystemNodes, wanted: SystemNodes) -> tuple[NodeChange, ...]:
    """Tags too: they are in the launch template, and its new version rolls the nodes (`infra/aws/node_groups.py`)."""
    pairs = [
        (("cluster", "systemInstanceType"), ", ".join(live.instance_types), ", ".join(wanted.instance_types)),
        (("cluster", "version"), live.version, wanted.version),
        (("cluster", "nodeRelease"), live.release or UNSET, wanted.release or live.release or UNSET),
        *(
            (("tags", key), live.tags.get(key, UNSET), wanted.tags.get(key, UNSET))
            for key in sorted({*live.tags, *wanted.tags})
        ),
    ]
    return tuple(NodeChange(path, was, will) for path, was, will in pairs if was != will)


def _roll(plan: Plan, system: SystemPlan, changes: tuple[NodeChange, ...], *, head_survives: bool) -> SystemRoll:
    known = start_parts()
    # The new node is there before the old one is drained, but without the image.
    head = known["image", "system"].of(IMAGE_GIB) + known["ray", "*"].of()
    nodes = max(system.min_nodes, system.needed_nodes)
    least = nodes * known["node", "cpu"].of()
    timeout_s = plan.gateway.settings.timeout_s
    stream = plan.grace_s(timeout_s)
    load = max(map(_load_seconds, plan.models), default=0.0)
    return SystemRoll(
        changes=changes,
        head_minutes=_minutes(head),
        gap_minutes=0 if head_survives else _minutes(head + load),
        nodes=nodes,
        least_minutes=_minutes(least),
        most_minutes=_minutes(least + nodes * stream),
        stream_minutes=_minutes(stream),
        one_gateway=plan.gateway.settings.replicas == 1,
    )


def _load_seconds(model: ModelPlan) -> float:
    """A replica's start on a node that stayed, with its image; the weights went with the pod of the worker."""
    if model.start is None:
        return 60.0 * UNKNOWN_START_MINUTES
    return model.start.seconds - sum(part.seconds for part in model.start.parts if part.name in ("node", "image"))


def _minutes(seconds: float) -> int:
    return max(1, round(seconds / 60))
