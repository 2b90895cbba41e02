"""Drains, kills and losses under requests; the times are in docs/kubernetes.md."""

from __future__ import annotations

import time

import pytest

from tests.nodes.fleet import NodesFleet
from tests.nodes.life import (
    HEAD,
    asking,
    kill,
    node_of,
    restarts,
    run_out_of_memory,
    workers,
)
from tests.nodes.pods import Pods
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


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
