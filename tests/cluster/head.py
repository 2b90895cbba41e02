"""The head pod's address on this machine, so that something real can answer there, and a small server that does.

kwok runs no container. The operator reaches a head through the API server's proxy, which dials the pod's address. On
the loopback device, that address is this machine. `FakeRay` answers what the operator asks a Ray head, for tests not
about Ray; `tests/nodes` runs the real one in a pod.
"""

from __future__ import annotations

import base64
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
#: What Ray's dashboard answers without a token (`dashboard/http_server_head.py`, Ray 2.60).
PUBLIC = ("/api/healthz", "/api/gcs_healthz", "/api/local_raylet_healthz", "/-/healthz")


def head_address(api: Api, namespace: str) -> str:
    """The address of the (newest) head pod, once it has one."""

    def look() -> str:
        pods = api.list("v1", "Pod", namespace, "ray.io/node-type=head")
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return str(alive[0]["status"].get("podIP", "")) if alive else ""

    return str(wait_for("the head pod's address", look, seconds=300))


def head_token(api: Api, namespace: str) -> str:
    """The token that the operator made for the (newest) head's Ray: that of the Secret which the head's pod names."""

    def look() -> str:
        pods = api.list("v1", "Pod", namespace, "ray.io/node-type=head")
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        (container,) = (one for one in alive[0]["spec"]["containers"] if one["name"] == "ray-head")
        env = {one["name"]: one for one in container["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token", "Ray in this pod asks for no token"
        key = env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        secret = api.get("v1", "Secret", key["name"], namespace)
        return base64.b64decode(secret["data"][key["key"]]).decode() if secret else ""

    return str(wait_for("the token of Ray", look, seconds=60))


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
    """Answers like a head whose applications all run: `config` is what the operator last sent, `puts` how often.

    As Ray does with `RAY_AUTH_MODE=token`, its dashboard answers 401 without a token and 403 to a wrong one.
    """

    def __init__(self, address: str, token: str) -> None:
        self.token = token
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
    server: ThreadingHTTPServer

    def do_GET(self) -> None:
        if not self._may():
            return
        self._answer(self.ray.details() if self.path.startswith("/api/serve") else {})

    def do_PUT(self) -> None:
        if not self._may():
            return
        self.ray.config = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.ray.puts += 1
        self._answer({})

    def _may(self) -> bool:
        """Whether the request has the token (`get_token_auth_middleware`, Ray 2.60), for all but Serve's own port."""
        if self.server.server_port == SERVE or self.path in PUBLIC:
            return True
        sent = self.headers.get("Authorization") or self.headers.get("X-Ray-Authorization") or ""
        if sent != f"Bearer {self.ray.token}":
            self._answer("Forbidden: Invalid authentication token" if sent else "Unauthorized", 403 if sent else 401)
        return sent == f"Bearer {self.ray.token}"

    def _answer(self, content: Any, code: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
