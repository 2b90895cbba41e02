"""Ports for what a test starts.

They are below the system's own range (32768 and up), where an outgoing connection may take one, above Ray's worker
ports (10002 to 19999: Ray refuses to start with another of its ports among them) and above the replicas' ports of a
local stack (`modelfleet.infra.local.runtime.replica_ports`).
"""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from itertools import cycle

PORTS = range(30000, 32760)
#: Each process has its own order, and comes to a port again after all others: two that look at once rarely meet.
_order = cycle(random.sample(PORTS, len(PORTS)))


def free_port() -> int:
    """A port of the loopback address that nothing listens on and that this process has not recently handed out."""
    for _ in PORTS:
        port = next(_order)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no free port in {PORTS}")


def free_ports(count: int) -> list[int]:
    """`count` such ports, all different."""
    return [free_port() for _ in range(count)]
