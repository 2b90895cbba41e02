"""What a run says when something that it needs is not there, and what goes on when a head dies or a disk is full."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfleet.infra.kubernetes.names import RAY_SERVICE
from modelfleet.infra.kubernetes.troubles import still_to_do
from modelfleet.infra.names import POOL_LABEL, STACK_LABEL
from tests.nodes.fleet import NodesFleet
from tests.nodes.life import HEAD, asking, kill, node_of, on, restarts, takes_minutes, workers
from tests.nodes.pods import Pods
from tests.waiting import wait_until
from tools.kubernetes.cluster import Cluster
from tools.kubernetes.node.node import Node
from tools.kubernetes.nodes import fake_node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

QUESTION = "What is the capital of France?"
NOWHERE = "storage.invalid"
ABSENT = f"localhost/modelfleet-serving@sha256:{'0' * 64}"


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
def other(cluster: Cluster, storage: dict[str, str], tmp_path: Path) -> Iterator[NodesFleet]:
    """A stack of its own; its pool is a node that only the preflight looks at."""
    with NodesFleet(cluster, storage, tmp_path, stack="absent") as made:
        made.write(nodes=1, replicas=1)
        made.trial.give_namespace(made.plan)
        labels = {STACK_LABEL: made.stack, POOL_LABEL: "cpu"}
        taints = [{"key": "kwok", "value": "fake", "effect": "NoSchedule"}]
        cluster.api.create(fake_node("absent", {"cpu": "16", "memory": "32Gi"}, labels=labels, taints=taints))
        yield made
    cluster.api.delete("v1", "Node", "absent")
    cluster.api.delete("v1", "Namespace", made.namespace)
    wait_until(
        lambda: not cluster.api.get("v1", "Namespace", made.namespace), what="the namespace is gone", seconds=180
    )


def test_an_absent_image_ends_the_run_with_its_name(other: NodesFleet) -> None:
    """It once was a wait of 90 minutes."""
    other.write(nodes=1, replicas=1, kubernetes={"image": ABSENT, "createNamespace": False})
    began = time.monotonic()
    run = other.modelfleet("up")
    took = time.monotonic() - began
    assert run.returncode == 2, run.stdout
    assert f"(image {ABSENT})" in run.stdout
    assert "push the image where the nodes can pull it, or name another" in run.stdout
    assert "Traceback" not in run.stdout
    print(f"an absent image ended `modelfleet up` after {took:.0f} s")
    assert took < 300


def test_a_secret_that_leads_nowhere_is_said_with_the_first_cause(other: NodesFleet) -> None:
    """The container that found out is gone by then; its last words are in its pod's status."""
    other.trial.give_secret(other.namespace, None, AWS_ENDPOINT_URL=f"http://{NOWHERE}")
    other.write(nodes=1, replicas=1)
    began = time.monotonic()
    run = other.modelfleet("up", until=NOWHERE)
    print(f"a Secret that leads nowhere was said after {time.monotonic() - began:.0f} s")
    (line,) = (line for line in run.stdout.splitlines() if NOWHERE in line)
    assert "is tried again: a try ended with Error, exit code 1" in line and "kubectl logs job/mirror-" in line


@takes_minutes
def test_a_head_that_is_killed_comes_back_with_its_models(fleet: NodesFleet, pods: Pods) -> None:
    """Without `redisAddress` its control store goes with it, and Ray starts anew."""
    node, before = node_of(fleet, HEAD), restarts(fleet)
    (head,) = (name for name in before if name.endswith("/ray-head"))
    with asking(fleet, pods, node.settings.number) as answers:
        kill(node, r"\S*/gcs_server")
        began = time.monotonic()
        wait_until(lambda: restarts(fleet).get(head, 0) > before[head], what="the head starts again", seconds=180)

        def settled() -> bool:
            service = fleet.cluster.api.get("ray.io/v1", "RayService", RAY_SERVICE, fleet.namespace)
            return still_to_do(service) is None and len(workers(fleet)) == 2

        wait_until(settled, what="Ray and its models are back", seconds=900, every_s=2)
        took = time.monotonic() - began
    refused = [code for code in answers.codes if code != "200"]
    print(
        f"a killed head: all back after {took:.0f} s, {len(refused)} of {len(answers.codes)} requests refused, "
        f"the longest took {answers.longest_s:.0f} s"
    )
    assert "Paris" in pods.says(fleet.question(QUESTION))


@pytest.fixture
def disk(fleet: NodesFleet) -> Iterator[Disk]:
    """That of a node with a worker, not the head's."""
    (name,) = workers(fleet).keys() - {node_of(fleet, HEAD).settings.name}
    made = Disk(fleet.cluster.node(name))
    yield made
    made.see_free(None)


@takes_minutes
def test_a_full_disk_evicts_the_worker_with_the_reason_and_it_comes_back(
    fleet: NodesFleet, pods: Pods, disk: Disk
) -> None:
    def reasons() -> list[str]:
        events = fleet.cluster.api.list("v1", "Event", fleet.namespace)
        evicted = [one for one in events if one["reason"] == "Evicted"]
        return [one["message"] for one in evicted if "worker" in one["involvedObject"]["name"]]

    disk.see_free("99%")
    began = time.monotonic()
    (reason,) = wait_until(reasons, what="the worker is evicted", seconds=300)
    assert "low on resource: ephemeral-storage" in reason
    ask = f"{fleet.question(QUESTION)} || true"
    there = on(3 - disk.node.settings.number)
    wait_until(lambda: "Paris" in pods.says(ask, **there), what="the other replica answers", seconds=120)
    disk.see_free(None)
    wait_until(lambda: len(workers(fleet)) == 2, what="the worker is back", seconds=600, every_s=2)
    print(f"a full disk: its worker is back {time.monotonic() - began:.0f} s after it was evicted")
