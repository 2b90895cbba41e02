"""What is said and what goes on when something is not there, full, or killed; the times are in docs/kubernetes.md."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfleet.infra.names import POOL_LABEL, STACK_LABEL
from tests.nodes.fleet import NodesFleet
from tests.nodes.life import HEAD, kill, node_of, on, workers
from tests.nodes.pods import Pods
from tests.waiting import wait_until
from tools.kubernetes.cluster import Cluster
from tools.kubernetes.node.node import Node
from tools.kubernetes.nodes import fake_node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

QUESTION = "What is the capital of France?"
ABSENT = f"localhost/modelfleet-serving@sha256:{'0' * 64}"


@pytest.fixture
def absent(cluster: Cluster, storage: dict[str, str], tmp_path: Path) -> Iterator[NodesFleet]:
    """A stack whose image is nowhere; its pool is a node that only the preflight looks at."""
    with NodesFleet(cluster, storage, tmp_path, stack="absent") as made:
        made.write(nodes=1, replicas=1, kubernetes={"image": ABSENT, "createNamespace": False})
        made.trial.give_namespace(made.plan)
        labels = {STACK_LABEL: made.stack, POOL_LABEL: "cpu"}
        taints = [{"key": "kwok", "value": "fake", "effect": "NoSchedule"}]
        cluster.api.create(fake_node("absent", {"cpu": "16", "memory": "32Gi"}, labels=labels, taints=taints))
        yield made
    cluster.api.delete("v1", "Node", "absent")
    cluster.api.delete("v1", "Namespace", made.namespace)


def test_an_absent_image_ends_the_run_with_its_name(absent: NodesFleet) -> None:
    """It once was a wait of 90 minutes."""
    began = time.monotonic()
    run = absent.modelfleet("up")
    took = time.monotonic() - began
    assert run.returncode == 2, run.stdout + run.stderr
    assert f"(image {ABSENT})" in run.stderr
    assert "push the image where the nodes can pull it, or name another" in run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    print(f"an absent image ended `modelfleet up` after {took:.0f} s")
    assert took < 300


def test_a_head_that_is_killed_comes_back_with_its_models(fleet: NodesFleet, pods: Pods) -> None:
    """Without `redisAddress` the control store goes with it, and Ray starts anew."""
    node = node_of(fleet, HEAD)
    kill(node, r"\S*/gcs_server")
    began = time.monotonic()
    ask = fleet.question(QUESTION)
    wait_until(lambda: "Paris" not in pods.says(f"{ask} || true"), what="the models are away", seconds=120)
    wait_until(lambda: "Paris" in pods.says(f"{ask} || true"), what="the models answer again", seconds=900)
    print(f"a head that was killed: answers again after {time.monotonic() - began:.0f} s")


@pytest.fixture
def full(fleet: NodesFleet) -> Iterator[Node]:
    """A node with a worker, not the head's, whose kubelet sees its disk as full; afterwards as it was."""
    head = node_of(fleet, HEAD)
    (name,) = workers(fleet).keys() - {head.settings.name}
    node = fleet.cluster.node(name)
    path = node.folder / "kubelet.json"
    before = path.read_text()
    settings = json.loads(before)
    settings["evictionHard"] = {**settings["evictionHard"], "nodefs.available": "99%"}
    path.write_text(json.dumps(settings))
    kill(node, dict(node.settings.programs)["kubelet"])
    yield node
    path.write_text(before)
    kill(node, dict(node.settings.programs)["kubelet"])
    wait_until(lambda: len(workers(fleet)) == 2, what="the worker is back", seconds=600)


def test_a_full_disk_evicts_the_worker_with_the_reason_and_the_other_replica_answers(
    fleet: NodesFleet, pods: Pods, full: Node
) -> None:
    def reasons() -> list[str]:
        events = fleet.cluster.api.list("v1", "Event", fleet.namespace)
        return [
            one["message"] for one in events if one["reason"] == "Evicted" and "worker" in one["involvedObject"]["name"]
        ]

    (reason,) = wait_until(reasons, what="the worker is evicted", seconds=300)
    assert "low on resource: ephemeral-storage" in reason
    ask = f"{fleet.question(QUESTION)} || true"
    other = on(3 - full.settings.number)
    wait_until(lambda: "Paris" in pods.says(ask, **other), what="the other replica answers", seconds=120)
