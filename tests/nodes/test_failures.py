"""What a run says when something that it needs is not there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfleet.infra.names import POOL_LABEL, STACK_LABEL
from tests.nodes.fleet import NodesFleet
from tests.waiting import wait_until
from tools.kubernetes.cluster import Cluster
from tools.kubernetes.nodes import fake_node
from tools.kubernetes.trial.trial import namespaces_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

NOWHERE = "storage.invalid"
ABSENT = f"localhost/modelfleet-serving@sha256:{'0' * 64}"


@pytest.fixture
def other(cluster: Cluster, storage: dict[str, str], tmp_path: Path) -> Iterator[NodesFleet]:
    """A stack of its own; its pool is a node that only the preflight looks at."""
    with NodesFleet(cluster, storage, tmp_path, stack="absent") as made:
        made.write(nodes=1, replicas=1)
        made.trial.give_namespaces(made.plan)
        labels = {STACK_LABEL: made.stack, POOL_LABEL: "cpu"}
        taints = [{"key": "kwok", "value": "fake", "effect": "NoSchedule"}]
        cluster.api.create(fake_node("absent", {"cpu": "16", "memory": "32Gi"}, labels=labels, taints=taints))
        yield made
    cluster.api.delete("v1", "Node", "absent")
    spaces = namespaces_of(made.plan)
    for name in spaces:
        cluster.api.delete("v1", "Namespace", name)
    gone = lambda: not [name for name in spaces if cluster.api.get("v1", "Namespace", name)]  # noqa: E731
    wait_until(gone, what="the namespaces are gone", seconds=180)


def test_an_absent_image_ends_the_run_with_its_name(other: NodesFleet) -> None:
    """It once was a wait of 90 minutes."""
    other.write(nodes=1, replicas=1, image=ABSENT)
    began = time.monotonic()
    run = other.modelfleet("up")
    took = time.monotonic() - began
    assert run.returncode == 2, run.stdout
    assert f"(image {ABSENT})" in run.stdout
    assert "push the image where the nodes can pull it, or name another" in run.stdout
    assert "Traceback" not in run.stdout
    print(f"an absent image ended `modelfleet up` after {took:.0f} s")
    assert took < 300


@pytest.mark.long(why="a stack more, 2 minutes")
def test_a_secret_that_leads_nowhere_is_said_with_the_first_cause(other: NodesFleet) -> None:
    """The container that found out is gone by then; its last words are in its pod's status."""
    other.write(nodes=1, replicas=1)
    for namespace in namespaces_of(other.plan):
        other.trial.give_secret(namespace, None, AWS_ENDPOINT_URL=f"http://{NOWHERE}")
    began = time.monotonic()
    run = other.modelfleet("up", until=NOWHERE)
    print(f"a Secret that leads nowhere was said after {time.monotonic() - began:.0f} s")
    said = [line for line in run.stdout.splitlines() if NOWHERE in line and line.startswith("Job mirror-")]
    assert said, run.stdout
    assert "is tried again: a try ended with Error, exit code 1" in said[0] and "logs job/mirror-" in said[0]
