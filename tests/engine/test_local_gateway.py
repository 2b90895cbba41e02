"""The gateway as a Pulumi resource: real HAProxy processes that are changed in place, repaired and removed."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from modelfleet.infra.local.runtime import short_folder
from tests.engine.engine import PULUMI, Project
from tests.engine.local_stack import ROOT
from tests.ports import free_port
from tests.waiting import wait_until

KEY = "sk-a-key-of-a-test-0001"

PROGRAM = """
import sys
import pulumi
sys.path.insert(0, {root!r})
from modelfleet.infra.gateway import render
from modelfleet.infra.local.resources import LocalResource
from modelfleet.infra.local.runtime import gateway_runtime
from modelfleet.infra.planning.plan import GatewayPlan, Route
from modelfleet.infra.stack.schema import Gateway as Settings

config = pulumi.Config()
port, metrics = config.require_int("port"), config.require_int("metricsPort")
keys = config.get_secret_object("keys")
plan = GatewayPlan(
    routes=tuple(Route(name, name, (name,)) for name in config.require_object("models")),
    auth="keys" if keys else "none",
    settings=Settings(max_body_mib=8, timeout_s=30),
)
files = render(plan, gateway_runtime({folder!r}, port, metrics), upstream="127.0.0.1:1")
LocalResource("Gateway", "gateway", {{
    "folder": {folder!r}, "port": port, "metricsPort": metrics, "texts": dict(files.texts), "keys": keys,
}})
"""


class GatewayStack(Project):
    """A project of one gateway."""

    def __init__(self, folder: Path) -> None:
        plugin = {"name": "modelfleet", "path": str(PULUMI.parent)}
        self.run_folder = folder / "run"
        self.run_folder.mkdir()
        super().__init__(
            folder,
            pulumi_yaml={"plugins": {"providers": [plugin]}, "options": {"refresh": "always"}},
            config={"port": free_port(), "metricsPort": free_port(), "models": ["one"]},
        )
        self.program(PROGRAM.format(root=str(ROOT), folder=str(self.run_folder)), prelude="")

    @property
    def pids(self) -> tuple[int, int]:
        (resource,) = self.resources("modelfleet:local:Gateway")
        return int(resource["outputs"]["pid"]), int(resource["outputs"]["bodiesPid"])

    def get(self, path: str, key: str | None = None) -> requests.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return requests.get(f"http://127.0.0.1:{self.config['port']}{path}", headers=headers, timeout=10)

    def models(self, key: str | None = None) -> list[str]:
        return [model["id"] for model in self.get("/v1/models", key).json()["data"]]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayStack]:
    made = GatewayStack(tmp_path)
    yield made
    made.destroy(check=False)
    assert made.living_processes() == []
    assert not short_folder(str(made.run_folder), "gw").exists()


def test_the_gateway_is_made_kept_and_changed_in_place(gateway: GatewayStack) -> None:
    gateway.up()
    assert gateway.models() == ["one"]
    before = gateway.pids
    assert gateway.up().changes == {"same": 2}
    assert gateway.pids == before
    gateway.config["models"] = ["one", "two"]
    run = gateway.up()
    assert run.changes == {"same": 1, "update": 1}
    assert gateway.models() == ["one", "two"]


def test_a_gateway_that_died_is_noticed_and_started_again(gateway: GatewayStack) -> None:
    gateway.up()
    first, second = gateway.pids
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{short_folder(str(gateway.run_folder), 'gw')}/bodies.sock")
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n{")
        os.kill(first, signal.SIGKILL)
        run = gateway.up()
        assert run.changes == {"same": 1, "create": 1}
        assert gateway.models() == ["one"]
        assert second in gateway.living_processes(), "the half that stayed alive has a request to finish"
    wait_until(lambda: second not in gateway.living_processes(), what="that half ends with its request")


def test_a_gateway_that_no_state_knows_hands_its_ports_over(gateway: GatewayStack) -> None:
    """An `up` that was killed after the start and before it noted the start leaves this behind."""
    gateway.up()
    old = gateway.pids
    gateway.run("state", "delete", _urn(gateway), "--yes", "--stack", gateway.stack)
    gateway.up()
    assert gateway.models() == ["one"]
    assert not set(old) & set(gateway.living_processes())


def test_keys_are_in_force_and_nowhere_in_plain_text(gateway: GatewayStack) -> None:
    gateway.set_secret("keys", f'{{"alice": "{KEY}"}}')
    gateway.up()
    assert gateway.get("/v1/models").status_code == 401
    assert gateway.models(KEY) == ["one"]
    before = gateway.pids
    gateway.set_secret("keys", f'{{"alice": "{KEY}-new"}}')
    gateway.up()
    assert gateway.models(f"{KEY}-new") == ["one"]
    assert gateway.get("/v1/models", KEY).status_code == 401
    assert gateway.pids == before, "new keys need no new process"
    written = [file.read_text(errors="replace") for file in gateway.run_folder.rglob("*") if file.is_file()]
    assert KEY not in gateway.everything_on_disk() + "".join(written)


def _urn(gateway: GatewayStack) -> str:
    (resource,) = gateway.resources("modelfleet:local:Gateway")
    return str(resource["urn"])
