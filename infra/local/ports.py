"""Loopback ports: whether they are free, who has them, and which key of the stack file changes ours."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping

import psutil

from modelfleet.serving.config.errors import SetupError

LOOPBACK = "127.0.0.1"
PASSING_S = 3.0


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of the loopback address."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def listens(port: int) -> bool:
    """Whether anybody takes connections at `port` of the loopback address."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def require_free(ports: Mapping[str, int]) -> None:
    """Raises `SetupError`, naming every taken port, who has it and the key that changes ours.

    `ports` maps keys of `modelfleet:local` to ports. A port without a listener may be the near end of somebody's short
    connection, so it gets `PASSING_S` to become free.
    """
    until = time.monotonic() + PASSING_S
    while taken := {key: port for key, port in ports.items() if not is_free(port)}:
        if any(map(owner, taken.values())) or time.monotonic() > until:
            named = "; ".join(
                f"modelfleet:local.{key}: port {port} is taken{owner(port)}" for key, port in taken.items()
            )
            raise SetupError(f"{named}. Choose a free port in the stack file, or end the program that has it")
        time.sleep(0.1)


def owner(port: int) -> str:
    """Who listens at `port`, as words that follow "is taken"; empty where that cannot be seen."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
