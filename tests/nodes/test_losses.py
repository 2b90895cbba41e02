"""What goes on when a worker's node is drained or lost, a disk is full, or Ray's head dies; times in docs/kubernetes.md.

Minutes of waiting each, which the run of all tests has no room for: `make test-nodes` runs them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from modelfleet.infra.kubernetes.names import RAY_SERVICE
from modelfleet.infra.kubernetes.troubles import still_to_do
from tests.nodes.fleet import NodesFleet
from tests.nodes.life import HEAD, asking, cordon, drain, kill, node_of, on, restarts, workers
from tests.nodes.pods import Pods
from tests.waiting import wait_until
from tools.kubernetes.node.node import Node

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.long(why="minutes each"),
]

QUESTION = "What is the capital of France?"


class Disk:
    """A node's disk as its kubelet judges it."""

    def __init__(self, node: Node) -> None:
        self.node, self._path = node, node.folder / "kubelet.json"
        self._before = self._path.read_text()

    def see_free(self, share: str | None) -> None:
        """Below so much free space it evicts; None: as before."""
        settings = json.loads(self._before)
        settings["evictionHard"] |= {"nodefs.available": share} if share else {}
        if settings != json.loads(self._path.read_text()):
            self._path.write_text(json.dumps(settings))
            kill(self.node, dict(self.node.settings.programs)["kubelet"])


@pytest.fixture
def disk(fleet: NodesFleet) -> Iterator[Disk]:
    """That of a node with a worker, not the head's."""
    (name,) = workers(fleet).keys() - {node_of(fleet, HEAD).settings.name}
    made = Disk(fleet.cluster.node(name))
    yield made
    made.see_free(None)


@pytest.fixture
def third(fleet: NodesFleet) -> Node:
    """A free node of the pool, for one test."""
    node = fleet.cluster.add_node(3)
    fleet.cluster.wait_for_node(3)
    fleet.trial.label_node(node.settings.name, "cpu")
    return node


def test_a_full_disk_evicts_the_worker_with_the_reason_and_it_comes_back(
    fleet: NodesFleet, pods: Pods, disk: Disk
) -> None:
    def reasons() -> list[str]:
        events = fleet.cluster.api.list("v1", "Event", fleet.namespace)
        evicted = [one for one in events if one["reason"] == "Evicted"]
        return [one["message"] for one in evicted if "worker" in one["involvedObject"]["name"]]

    disk.see_free("99%")
    began = time.monotonic()
    reason = wait_until(reasons, what="the worker is evicted", seconds=300)[0]
    # The second is a kubelet's that finds it out before it has taken its pods over, as this one may after its restart.
    assert "low on resource: ephemeral-storage" in reason or "[DiskPressure]" in reason
    ask = f"{fleet.question(QUESTION)} || true"
    there = on(3 - disk.node.settings.number)
    wait_until(lambda: "Paris" in pods.says(ask, **there), what="the other replica answers", seconds=120)
    disk.see_free(None)
    wait_until(lambda: len(workers(fleet)) == 2, what="the worker is back", seconds=600, every_s=2)
    print(f"a full disk: its worker is back {time.monotonic() - began:.0f} s after it was evicted")


def test_a_drained_worker_moves_its_replica_at_the_groups_limit_and_a_lost_node_is_replaced(
    fleet: NodesFleet, pods: Pods, third: Node
) -> None:
    api, head = fleet.cluster.api, node_of(fleet, HEAD)
    (drained,) = workers(fleet).keys() - {head.settings.name}
    began = time.monotonic()
    with asking(fleet, pods, head.settings.number) as answers:
        drain(api, drained, seconds=800)
    took = time.monotonic() - began
    print(f"drained in {took:.0f} s, {len(answers.codes)} answers, the longest {answers.longest_s:.1f} s")
    assert set(answers.codes) == {"200"} and len(answers.codes) > 20
    assert workers(fleet).keys() == {head.settings.name, third.settings.name}

    cordon(api, drained, off=True)
    began = time.monotonic()
    third.stop()
    api.delete("v1", "Node", third.settings.name)  # as a cloud's controller does for an instance that is gone
    wait_until(lambda: workers(fleet).keys() == {head.settings.name, drained}, what="another worker", seconds=600)
    print(f"a lost node's worker is ready elsewhere after {time.monotonic() - began:.0f} s")
    assert "Paris" in pods.says(fleet.question(QUESTION))


def test_a_head_that_is_killed_comes_back_with_its_models(fleet: NodesFleet, pods: Pods) -> None:
    """Without `redisAddress` its control store goes with it, and Ray starts anew."""

    def head() -> dict[str, int]:
        return {name: count for name, count in restarts(fleet).items() if name.endswith("/ray-head")}

    node, before = node_of(fleet, HEAD), head()
    with asking(fleet, pods, node.settings.number) as answers:
        kill(node, r"\S*/gcs_server")
        began = time.monotonic()
        # In its pod, or in a new one: KubeRay's autoscaler of version 2 asks for pods that never start again.
        wait_until(lambda: head() not in ({}, before), what="a head starts again", seconds=180)

        def settled() -> bool:
            service = fleet.cluster.api.get("ray.io/v1", "RayService", RAY_SERVICE, fleet.namespace)
            return still_to_do(service) is None and len(workers(fleet)) == 2

        wait_until(settled, what="Ray and its models are back", seconds=900, every_s=2)
        ask = f"{fleet.question(QUESTION)} || true"
        wait_until(lambda: "Paris" in pods.says(ask), what="an answer", seconds=300)
        took = time.monotonic() - began
    refused = [code for code in answers.codes if code != "200"]
    print(
        f"a killed head: all back after {took:.0f} s, {len(refused)} of {len(answers.codes)} requests refused, "
        f"the longest took {answers.longest_s:.0f} s"
    )
    assert len(refused) < len(answers.codes) / 2
