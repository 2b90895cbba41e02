"""Whose connection it is: the kernel's table, and what is answered to other users' programs."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from modelfleet.serving import own_user
from modelfleet.serving.own_user import OwnUserOnly, is_known, may_connect, owner_of


def test_the_owner_is_who_has_the_clients_end_of_an_open_connection() -> None:
    """The kernel gives root to a connection that its client has closed: that must not count as root's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, (_, mine) = server.accept()
        assert owner_of(mine, port) == os.geteuid()
        assert owner_of(port, mine) == os.geteuid(), "the server's end is a connection too"
        assert owner_of(mine, mine) is None and owner_of(0, port) is None
        client.close()
        assert owner_of(mine, port) is None
        accepted.close()
    assert is_known()


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_a_client_of_another_user_is_found_whatever_its_socket(address: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    with socket.create_server(("127.0.0.1", 0)) as server:
        family = "AF_INET6" if ":" in address else "AF_INET"
        program = (
            f"import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.{family}); "
            f"s.connect(({address!r}, {server.getsockname()[1]})); sys.stdin.read()"
        )
        with subprocess.Popen([sys.executable, "-S", "-c", program], stdin=subprocess.PIPE) as other:
            accepted, (_, theirs) = server.accept()
            with accepted:
                assert owner_of(theirs, server.getsockname()[1]) == 65534
                assert other.stdin is not None
                other.stdin.close()


def test_a_connection_of_ones_own_is_recognised() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            mine = client.getsockname()[1]
            assert may_connect(mine, port)
        assert not may_connect(mine, port), "it is closed, and nobody waits for an answer"


def _answer(scope: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "passed"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    asyncio.run(OwnUserOnly(app)(scope, receive, send))
    return sent


@pytest.mark.parametrize("client", [("127.0.0.1", 50000), ("127.0.0.1", 0), None], ids=str)
def test_others_get_403_and_no_answer_of_the_model(
    client: tuple[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_user, "owner_of", lambda client_port, *_: 65534 if client_port else None)
    first, *_ = _answer({"type": "http", "client": client, "server": ("127.0.0.1", 8001)})
    assert first["status"] == 403
    (closed,) = _answer({"type": "websocket", "client": client, "server": ("127.0.0.1", 8001)})
    assert closed["type"] == "websocket.close"


@pytest.mark.parametrize("owner", [0, os.geteuid()])
def test_the_stacks_user_and_root_are_served(owner: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_user, "owner_of", lambda *_: owner)
    assert _answer({"type": "http", "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8001)}) == [
        {"type": "passed"}
    ]
    assert _answer({"type": "lifespan"}) == [{"type": "passed"}]


def test_a_system_that_does_not_say_whose_a_connection_is_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK")
    assert not is_known()
