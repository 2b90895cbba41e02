"""Loopback ports: are they free, who has them, and which setting of the stack file moves ours."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

import psutil

from infra.provider import Refused

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether a server could listen on the port of the loopback address."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def require_free(ports: Mapping[str, int]) -> None:
    """Raises `Refused` that names every taken port, who has it and the setting that moves ours.

    `ports` maps keys of `modelfleet:local` to ports.
    """
    taken = [
        f"port {port} is taken{_by(port)}; set modelfleet:local.{key}"
        for key, port in ports.items()
        if not is_free(port)
    ]
    if taken:
        raise Refused(". ".join(taken) + " in the stack file to a free port, or end that program")


def _by(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
