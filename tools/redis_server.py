"""A Redis for tests, from Debian's packages, without installing them: unpacked into the tools' cache.

Valkey 7.2 began as Redis 7.2 and answers Ray the same; Debian has it from release 13 on.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelfleet.serving.config.errors import SetupError
from tools.cache import once

#: The server is in `redis-tools`; the rest is what it needs and not every machine has.
PACKAGES = ("redis-tools", "redis-server", "libjemalloc2", "liblzf1")


@dataclass(frozen=True)
class RedisServer:
    """The server's program and the environment that it needs."""

    program: Path
    environment: Mapping[str, str]


def redis_server() -> RedisServer:
    """The server, downloaded once per machine; raises `SetupError` where there is no `apt-get`."""
    root = once("redis-debian", _unpack)
    libraries = ":".join(str(folder) for folder in sorted(root.glob("usr/lib/*-linux-gnu")))
    return RedisServer(root / "usr/bin/redis-server", {**os.environ, "LD_LIBRARY_PATH": libraries})


def _unpack(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        _run(["apt-get", "download", "--quiet", *PACKAGES], Path(downloads))
        for package in sorted(Path(downloads).glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(folder)], folder)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise SetupError(f"{command[0]} is not on PATH; the test of Ray's head needs a Debian or Ubuntu") from None
    except subprocess.CalledProcessError as error:
        raise SetupError(f"{' '.join(command)} failed: {error.stderr.strip()}") from error
