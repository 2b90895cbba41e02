"""The head pod's address on this machine, so that something real can answer there, and a small server that does.

kwok runs no container. The operator reaches a head through the API server's proxy, which dials the pod's address. On
the loopback device, that address is this machine. `FakeRay` answers what the operator asks a Ray head, for tests not
about Ray; `tests/nodes` runs the real one in a pod.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from modelfleet.infra.kubernetes.api import Api
from tests.cluster.conftest import wait_for

DASHBOARD, SERVE = 8265, 8000


def head_address(api: Api, namespace: str) -> str:
    """The address of the (newest) head pod, once it has one."""

    def look() -> str:
        pods = api.list("v1", "Pod", namespace, "ray.io/node-type=head")
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return str(alive[0]["status"].get("podIP", "")) if alive else ""

    return str(wait_for("the head pod's address", look, seconds=300))


@contextmanager
def on_loopback(address: str) -> Iterator[str]:
    """Puts the address on the loopback device while the block runs."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to put a pod's address on the loopback device")
    subprocess.run(["ip", "addr", "replace", f"{address}/32", "dev", "lo"], check=True)
    try:
        yield address
    finally:
        subprocess.run(["ip", "addr", "del", f"{address}/32", "dev", "lo"], check=True)


class FakeRay:
    """Answers like a head whose applications all run: `config` is what the operator last sent, `puts` how often."""

    def __init__(self, address: str) -> None:
        self.config: dict[str, Any] = {"applications": []}
        self.puts = 0
        handler = type("Handler", (_Handler,), {"ray": self})
        self._servers = [ThreadingHTTPServer((address, port), handler) for port in (DASHBOARD, SERVE)]

    def __enter__(self) -> FakeRay:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def details(self) -> dict[str, Any]:
        names = [application["name"] for application in self.config["applications"]]
        running = {"status": "RUNNING", "message": "", "deployments": {"vllm": {"status": "HEALTHY", "message": ""}}}
        return {"applications": dict.fromkeys(names, running)}


class _Handler(BaseHTTPRequestHandler):
    ray: FakeRay

    def do_GET(self) -> None:
        self._answer(self.ray.details() if self.path.startswith("/api/serve") else {})

    def do_PUT(self) -> None:
        self.ray.config = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.ray.puts += 1
        self._answer({})

    def _answer(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
