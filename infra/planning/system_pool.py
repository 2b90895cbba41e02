"""How many system nodes a stack needs: for what always runs there, and for a second Ray head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.planning.nodes import node_shape, pods_disk_gb
from modelfleet.infra.planning.plan import NodeShape, SystemPlan
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding, Severity

#: CPU in millicores, memory in MiB.
Request = tuple[int, int]
TYPE: Final = ("cluster", "systemInstanceType")
#: The Ray head's image unpacks to some 30 GB.
ROOT_GIB: Final = 50


def system_plan(stack: LoadedStack, catalog: Catalog) -> tuple[SystemPlan | None, list[Finding]]:
    """The system pool of a stack that makes its cluster, and what is wrong with its instance type and size."""
    if not stack.config.target.makes_cluster:
        return None, []
    cluster = stack.config.cluster
    name, least = cluster.system_instance_type, cluster.system_nodes
    known = catalog.instance_types.get(name)
    if known is None:
        message = f"found '{name}', which the catalog does not know, so the plan cannot tell how many system nodes fit"
        return _plan(name, 0, least, least), [stack.finding(TYPE, message, Severity.WARNING)]
    node = node_shape([known], catalog, made_here=True)
    needed = nodes_for(system_requests(stack, catalog), node)
    plan = _plan(name, known.vcpus, least, needed or least)
    if needed is None:
        return plan, [_too_small(stack, name, node, catalog)]
    if needed > least:
        message = f"found {least}; what always runs needs {needed} nodes of {name}, and they count in the cost"
        return plan, [stack.finding(("cluster", "systemNodes"), message, Severity.NOTICE)]
    return plan, []


def _plan(name: str, vcpus: int, least: int, needed: int) -> SystemPlan:
    """A node more than what runs always has room for a second head, wherever the other pods are."""
    return SystemPlan(name, vcpus, ROOT_GIB, pods_disk_gb(ROOT_GIB), least, needed, max(needed, least) + 1)


def system_requests(stack: LoadedStack, catalog: Catalog) -> list[Request]:
    """What each pod that always runs on the system pool requests."""
    gateway = stack.config.gateway
    own = int(stack.config.observability.metrics == "own")
    words = {
        "monitors": own,
        "volumes": 2 * own,  # the driver's controller and the one that waits
        "gateways": gateway.replicas,
        "load-balancers": int(gateway.expose != "none"),
        "returns": int(any(pool.return_after_minutes is not None for pool in stack.config.pools)),
    }
    counts = [(pod, words[pod.count] if isinstance(pod.count, str) else pod.count) for pod in catalog.system_pods]
    return [(pod.cpu_millis, pod.memory_mib) for pod, count in counts for _ in range(count)]


def nodes_for(requests: Sequence[Request], node: NodeShape) -> int | None:
    """How many nodes hold the pods, the largest first, each on the first node with room; None if one fits on none."""
    free: list[Request] = []
    for cpu, memory in sorted(requests, reverse=True):
        if cpu > node.cpu_millis or memory > node.memory_mib:
            return None
        at = next((i for i, (c, m) in enumerate(free) if cpu <= c and memory <= m), len(free))
        left = (node.cpu_millis, node.memory_mib) if at == len(free) else free[at]
        free[at:] = [(left[0] - cpu, left[1] - memory), *free[at + 1 :]]
    return len(free)


def _too_small(stack: LoadedStack, name: str, node: NodeShape, catalog: Catalog) -> Finding:
    largest = max(catalog.system_pods, key=lambda pod: (pod.cpu_millis, pod.memory_mib))
    message = (
        f"'{name}' offers {node.cpu_millis}m CPU and {node.memory_mib} MiB to pods, but {largest.name} requests "
        f"{largest.cpu_millis}m and {largest.memory_mib} MiB; choose a larger type, such as m7i.xlarge"
    )
    return stack.finding(TYPE, message)
