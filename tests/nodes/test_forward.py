"""A port inside a pod is read through the API server where a policy keeps everybody out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelfleet.infra.kubernetes.forward import get
from tests.nodes.pods import NAMESPACE, Pods

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = "number 1\n" * 50_000
SERVER = f"""
import http.server
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.path == "/metrics"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write({PAGE[:9]!r}.encode() * {PAGE.count(chr(10))} if found else b"")
http.server.HTTPServer(("127.0.0.1", 8080), Page).serve_forever()
"""


@pytest.fixture(scope="module")
def closed(pods: Pods) -> Iterator[Pods]:
    """A pod that nobody may reach, whose server listens on its loopback alone."""
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed-page", "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": "page"}}, "policyTypes": ["Ingress", "Egress"]},
    }
    pods.cluster.api.create(policy)
    probe = {"exec": {"command": ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 8080))"]}}
    container = {"command": ["python3", "-u", "-c", SERVER], "readinessProbe": {**probe, "periodSeconds": 1}}
    pods.create("page", "", container=container, labels={"app": "page"})
    pods.ready("page")
    yield pods
    pods.delete("page")


def test_a_page_of_a_pod_that_a_policy_closes_comes_whole(closed: Pods) -> None:
    assert get(closed.cluster.api, NAMESPACE, "page", 8080, "/metrics", 10) == PAGE


@pytest.mark.parametrize(
    ("pod", "port", "path", "said"),
    [
        ("page", 8080, "/nothing", "returned 404"),
        ("page", 8081, "/metrics", "port 8081 answers no HTTP: "),
        ("nobody", 8080, "/metrics", "the API server returned 404"),
    ],
)
def test_what_does_not_answer_is_said(closed: Pods, pod: str, port: int, path: str, said: str) -> None:
    with pytest.raises(OSError, match=said):
        get(closed.cluster.api, NAMESPACE, pod, port, path, 10)
