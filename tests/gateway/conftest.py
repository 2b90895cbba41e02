"""Real HAProxy processes in front of a small HTTP server that stands in for Ray Serve."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests

from infra.gateway import Runtime, render
from infra.local import haproxy
from infra.planning.plan import GatewayPlan, Route
from tests.gateway.backend import Backend

ALICE, BOB = "sk-alice-0123456789", "sk-bob-0123456789abc"
KEYS = {"alice": ALICE, "bob": BOB}
PLAN = GatewayPlan(
    routes=(
        Route("org/large", "org--large", ("org/large", "org/large-lora"), "A large one.", answer_tokens=500),
        Route("small", "small", ("small",), answer_tokens=100),
    ),
    auth="keys",
    requests_per_minute=None,
    concurrent_requests=None,
    max_body_mib=8,
    timeout_s=30,
    replicas=1,
    hostname=None,
    tls_secret=None,
)
#: Below the system's own range, so that a backend can come back on its port. Gateways keep theirs until the session ends.
PORTS = range(8820, 9220)
#: Each of pytest's processes begins at a place of its own: two that look at once would find the same port free.
_ports = count(int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) * len(PORTS) // 2)


def free_port() -> int:
    """The next port of this suite's range that nobody listens on."""
    for _ in PORTS:
        port = PORTS[next(_ports) % len(PORTS)]
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no free port in {PORTS}")


@dataclass
class Gateway:
    """A running gateway and the backend behind it."""

    plan: GatewayPlan
    runtime: Runtime
    backend: Backend
    log: Path
    keys: dict[str, str] | None
    processes: haproxy.Processes | None = None
    old: list[haproxy.Processes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.runtime.bind}"

    def up(self) -> Gateway:
        files = render(self.plan, self.runtime, upstream=f"127.0.0.1:{self.backend.port}")
        haproxy.write(files, self.runtime, self.keys)
        if self.processes:
            self.old.append(self.processes)
        self.processes = haproxy.start(self.runtime, haproxy.find_binary(), self.log, replaces=self.processes)
        return self

    def change(self, **changes: Any) -> None:
        """Another plan, taken over without a restart."""
        self.plan = replace(self.plan, **changes)
        self.up()

    def down(self) -> None:
        for processes in [self.processes, *self.old]:
            if processes:
                haproxy.stop(processes, timeout_s=0.2)

    def post(self, path: str, body: Any = None, key: str | None = ALICE, **kwargs: Any) -> requests.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        headers.update(kwargs.pop("headers", {}))
        if body is not None:
            kwargs["json"] = body
        return requests.post(self.url + path, headers=headers, timeout=20, **kwargs)

    def get(self, path: str, key: str | None = ALICE) -> requests.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return requests.get(self.url + path, headers=headers, timeout=20)

    def raw(self, data: bytes, wait_s: float = 3.0) -> bytes:
        """Send bytes as they are and read until the gateway closes or nothing more comes."""
        host, port = self.runtime.bind.split(":")
        with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
            connection.sendall(data)
            answer = b""
            with suppress(TimeoutError, ConnectionResetError):
                while part := connection.recv(65536):
                    answer += part
        return answer

    def logged(self, request_id: str) -> dict[str, Any]:
        """The access log's entry of a request."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for line in self.log.read_text().splitlines():
                if line.startswith("{") and (entry := json.loads(line))["request_id"] == request_id:
                    return entry  # type: ignore[no-any-return]
            time.sleep(0.05)
        raise AssertionError(f"no log entry for {request_id}")


Make = Callable[..., Gateway]


@pytest.fixture(scope="session")
def make_gateway() -> Iterator[Make]:
    """Start gateways with their own backend; all end with the session."""
    started: list[Gateway] = []
    folders: list[str] = []

    def make(
        keys: dict[str, str] | None = KEYS,
        down: Sequence[str] = (),
        replica_ports: tuple[int, int] | None = None,
        **changes: Any,
    ) -> Gateway:
        folder = tempfile.mkdtemp(prefix="gateway-")
        folders.append(folder)
        runtime = Runtime(
            bind=f"127.0.0.1:{free_port()}",
            folder=f"{folder}/files",
            run_folder=f"{folder}/run",
            key_map=f"{folder}/run/keys.map",
            metrics_bind=f"127.0.0.1:{free_port()}",
            threads=1,
            ready_interval_s=1,
            bodies_memory_mib=256,
            replica_ports=replica_ports,
        )
        backend = Backend(free_port(), down=set(down)).start()
        gateway = Gateway(replace(PLAN, **changes), runtime, backend, Path(folder) / "gateway.log", keys)
        started.append(gateway)
        return gateway.up()

    yield make
    for gateway in started:
        gateway.down()
        gateway.backend.stop()
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shared(make_gateway: Make) -> Gateway:
    """One gateway with two models and two keys, for tests that change nothing."""
    return make_gateway()
