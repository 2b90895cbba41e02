"""Real HAProxy processes in front of a small HTTP server that stands in for Ray Serve."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import requests

from modelfleet.infra.gateway import GatewayFiles, Runtime, render
from modelfleet.infra.local import haproxy
from modelfleet.infra.planning.plan import GatewayPlan, Route
from modelfleet.infra.stack.schema import Gateway as Settings
from tests.gateway.backend import Backend
from tests.ports import free_port
from tests.waiting import logged

ALICE, BOB = "sk-alice-0123456789", "sk-bob-0123456789abc"
KEYS = {"alice": ALICE, "bob": BOB}
PLAN = GatewayPlan(
    routes=(
        Route("org/large", "org--large", ("org/large", "org/large-lora"), "A large one.", answer_tokens=500),
        Route("small", "small", ("small",), answer_tokens=100),
    ),
    auth="keys",
    settings=Settings(max_body_mib=8, timeout_s=30),
)


def changed(plan: GatewayPlan, changes: Mapping[str, Any]) -> GatewayPlan:
    """The plan with other routes, `auth`, `chat`, `who` (its keys) or teams, or other keys of the stack file's `gateway`."""
    own = {
        "keys" if key == "who" else key: changes[key]
        for key in changes
        if key in ("routes", "auth", "chat", "who", "teams", "side_by_side", "jwt", "traces")
    }
    settings = {key: value for key, value in changes.items() if key not in (*own, "who")}
    return replace(plan, **own, settings=plan.settings.model_copy(update=settings))


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
    #: The port of a name server that knows the pods of a cluster.
    dns: int | None = None

    @property
    def url(self) -> str:
        return f"http://{self.runtime.bind}"

    def up(self) -> Gateway:
        host = "127.0.0.1" if self.dns is None else "serve.test"
        files = render(self.plan, self.runtime, upstream=f"{host}:{self.backend.port}")
        if self.dns is not None:  # this machine's own resolv.conf names another one
            own = f"nameserver test 127.0.0.1:{self.dns}"
            files = GatewayFiles({n: text.replace("parse-resolv-conf", own) for n, text in files.texts.items()})
        haproxy.write(files, self.runtime, self.keys)
        if self.processes:
            self.old.append(self.processes)
        self.processes = haproxy.start(self.runtime, haproxy.find_binary(), self.log, replaces=self.processes)
        return self

    def change(self, **changes: Any) -> None:
        """Takes over another plan without a restart."""
        self.plan = changed(self.plan, changes)
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
        """Send bytes unchanged and read until the gateway closes or sends no more."""
        host, port = self.runtime.bind.split(":")
        with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
            answer = b""
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
            # Also after that: a gateway that refuses a request answers before it has read all of it.
            with suppress(TimeoutError, ConnectionResetError):
                while part := connection.recv(65536):
                    answer += part
        return answer

    def logged(self, request_id: str) -> dict[str, Any]:
        """The access log's entry of a request."""
        return logged(self.log, request_id)


Make = Callable[..., Gateway]


@pytest.fixture(scope="session")
def make_gateway() -> Iterator[Make]:
    """Start gateways with their own backend, `at` other addresses or files; all end with the session."""
    started: list[Gateway] = []
    folders: list[str] = []

    def make(
        keys: dict[str, str] | None = KEYS,
        down: Sequence[str] = (),
        replica_ports: tuple[int, int] | None = None,
        pods: int | None = None,
        dns: int | None = None,
        at: Mapping[str, Any] | None = None,
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
            pods=pods,
            resolve_names=pods is not None,
        )
        runtime = replace(runtime, **(at or {}))
        backend = Backend(free_port(), down=set(down)).start()
        gateway = Gateway(changed(PLAN, changes), runtime, backend, Path(folder) / "gateway.log", keys, dns=dns)
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
