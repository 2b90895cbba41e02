"""Behind a load balancer the log and the limits have the client's address, and nobody else can claim one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import requests

from tests.gateway.conftest import Gateway, Make
from tests.ports import free_port

CHAT = "/v1/chat/completions"
ASK = {"model": "small"}


@pytest.fixture
def door(make_gateway: Make) -> tuple[Gateway, str]:
    """A gateway without keys and with a limit of two requests per address, and the URL of its front door's port."""
    gateway = make_gateway(auth="none", keys=None, requests_per_minute=2)
    bind = f"127.0.0.1:{free_port()}"
    gateway.runtime = replace(gateway.runtime, door_bind=bind, door_idle_s=100)
    return gateway.up(), f"http://{bind}{CHAT}"


def ask(url: str, forwarded: str | None, name: str = "x") -> int:
    headers = {"x-request-id": name, **({"x-forwarded-for": forwarded} if forwarded else {})}
    return requests.post(url, json=ASK, headers=headers, timeout=20).status_code


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        # A load balancer appends; all before its own entry is what the client claims.
        ("10.0.0.1, 203.0.113.8", "203.0.113.8"),
        ("2001:db8::1", "2001:db8::1"),
        ("nonsense", "127.0.0.1"),
        (None, "127.0.0.1"),
    ],
)
def test_at_the_front_doors_port_the_log_has_the_clients_address(
    door: tuple[Gateway, str], forwarded: str | None, client: str
) -> None:
    gateway, url = door
    assert ask(url, forwarded, "through-the-door") == 200
    assert gateway.logged("through-the-door")["client"] == client


def test_at_the_gateways_own_port_nobody_can_claim_an_address(door: tuple[Gateway, str]) -> None:
    gateway, _ = door
    assert ask(gateway.url + CHAT, "203.0.113.7", "claimed") == 200
    assert gateway.logged("claimed")["client"] == "127.0.0.1"


def test_without_keys_each_client_of_the_load_balancer_has_its_own_limit(door: tuple[Gateway, str]) -> None:
    """Before, all clients had the load balancer's address, and shared one limit."""
    _, url = door
    assert [ask(url, "203.0.113.7") for _ in range(3)] == [200, 200, 429]
    assert ask(url, "203.0.113.9") == 200
    assert ask(url, "203.0.113.9, 203.0.113.7") == 429, "what a client writes itself does not count"


def test_an_idle_connection_of_the_load_balancer_stays_open_longer_than_its_own_timeout(make_gateway: Make) -> None:
    """Otherwise the gateway closes one under the load balancer's next request, which is a 502 for its client."""
    gateway = make_gateway()
    gateway.runtime = replace(gateway.runtime, door_bind=f"127.0.0.1:{free_port()}", door_idle_s=100)
    gateway.up()
    frontend = (gateway.log.parent / "files" / "haproxy.cfg").read_text().split("frontend api")[1]
    assert "timeout http-keep-alive 160s" in frontend
