"""The whole way in real pods: one `pulumi up`, then an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelfleet.infra.kubernetes.manifests.network import RAY_PODS, SERVE_PODS
from modelfleet.infra.kubernetes.names import SERVE_SERVICE
from tests.nodes.fleet import SLUG, NodesFleet
from tests.nodes.life import HEAD, node_of
from tests.nodes.pods import Pods
from tools.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("path", ["/v1", f"/{SLUG}/v1"])
def test_a_model_file_becomes_an_answer(fleet: NodesFleet, pods: Pods, path: str) -> None:
    ask = fleet.question("What is the capital of France?", path=path)
    assert "Paris" in json.loads(pods.says(ask))["choices"][0]["message"]["content"]


def test_the_head_sees_nothing_of_the_checkout(fleet: NodesFleet) -> None:
    find = r"cat /proc/$(pgrep -of '^\S*/gcs_server')/mounts"
    node = node_of(fleet, HEAD)
    seen = subprocess.run(node.command("sh", "-c", find), check=True, capture_output=True, text=True).stdout
    assert " / overlay " in seen and f" {ROOT}" not in seen


def test_the_gateways_policy_names_what_the_operators_service_selects(fleet: NodesFleet) -> None:
    """The VPC CNI, which is not here, opens a Service's address to a peer that the Service's own selector satisfies."""
    api, namespace = fleet.cluster.api, fleet.namespace
    service = api.get("v1", "Service", SERVE_SERVICE, namespace)
    policy = api.get("networking.k8s.io/v1", "NetworkPolicy", "gateway", namespace)
    assert service is not None and policy is not None
    selector = service["spec"]["selector"]
    peers = [peer.get("podSelector") for rule in policy["spec"]["egress"] for peer in rule.get("to", [])]
    assert SERVE_PODS in peers and RAY_PODS in peers
    assert SERVE_PODS["matchLabels"].items() <= selector.items()
    assert not RAY_PODS["matchLabels"].items() <= selector.items(), "the label of Ray's pods is enough now"


def test_top_reads_every_pod_through_forwarded_ports(fleet: NodesFleet) -> None:
    words = [Path(sys.prefix) / "bin" / "modelfleet", "top", "--stack", fleet.stack, "--json", "--window", "2"]
    done = subprocess.run(
        words, cwd=fleet.project.folder, env=fleet.project.environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    (model,), (pool,) = shown["models"], shown["pools"]
    assert (model["replicas"], model["running"], pool["nodes"], shown["unread"]) == (2, 0, 2, [])
