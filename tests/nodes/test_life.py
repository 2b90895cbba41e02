"""Drains, kills and losses under requests; the times are in docs/kubernetes.md."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.nodes.fleet import NodesFleet
from tests.nodes.life import (
    HEAD,
    asking,
    cordon,
    drain,
    kill,
    node_of,
    restarts,
    run_out_of_memory,
    takes_minutes,
    workers,
)
from tests.nodes.pods import Pods
from tests.waiting import wait_until
from tools.kubernetes.node.node import Node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def third(fleet: NodesFleet) -> Iterator[Node]:
    """A free node of the pool, for one test."""
    node = fleet.cluster.add_node(3)
    fleet.cluster.wait_for_node(3)
    fleet.trial.label_node(node.settings.name, "cpu")
    yield node


def test_nothing_that_is_slow_to_start_was_restarted(fleet: NodesFleet) -> None:
    assert {name: count for name, count in restarts(fleet).items() if count} == {}


def test_a_kubelet_that_starts_again_restarts_nothing(fleet: NodesFleet, pods: Pods) -> None:
    before = restarts(fleet)
    node = node_of(fleet, HEAD)
    with asking(fleet, pods, node.settings.number) as answers:
        kill(node, dict(node.settings.programs)["kubelet"])
        wait_until(lambda: node.log("kubelet").count("Kubelet version") == 2, what="the kubelet starts", seconds=60)
        fleet.cluster.wait_for_node(node.settings.number)
    assert set(answers.codes) == {"200"} and restarts(fleet) == before


@takes_minutes
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
    said: Any = pods.says(fleet.question("What is the capital of France?"))
    assert "Paris" in said


def test_an_engine_without_memory_comes_back_and_the_reason_is_on_stdout(fleet: NodesFleet, pods: Pods) -> None:
    name, worker = next(iter(workers(fleet).items()))
    node = fleet.cluster.node(name)
    assert run_out_of_memory(node, "VLLM::EngineCore") == 1
    wait_until(
        lambda: "the engine of" in fleet.cluster.api.log(fleet.namespace, worker),
        what="the reason on stdout",
        seconds=60,
    )
    began = time.monotonic()
    with asking(fleet, pods, node.settings.number):
        pass
    print(f"answers again {time.monotonic() - began:.0f} s after the kernel ended an engine for its memory")
