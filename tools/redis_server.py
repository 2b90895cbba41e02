"""A Redis for tests, from Debian's packages.

Valkey 7.2 began as Redis 7.2 and answers Ray the same; Debian has it from release 13 on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.debian import unpacked

#: The server is in `redis-tools`; the rest is what it needs and not every machine has.
PACKAGES = ("redis-tools", "redis-server", "libjemalloc2", "liblzf1")


@dataclass(frozen=True)
class RedisServer:
    """The server's program and the environment that it needs."""

    program: Path
    environment: Mapping[str, str]


def redis_server() -> RedisServer:
    """The server, downloaded once per machine; raises `SetupError` where there is no `apt-get`."""
    root = unpacked("redis-debian", PACKAGES)
    libraries = ":".join(str(folder) for folder in sorted(root.glob("usr/lib/*-linux-gnu")))
    return RedisServer(root / "usr/bin/redis-server", {**os.environ, "LD_LIBRARY_PATH": libraries})
