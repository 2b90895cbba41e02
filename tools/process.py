"""Which process a remembered pid stands for. Standard library only: the `pulumi` command imports it.

A pid alone proves nothing, it may have been given to another process since; a pid with its start time does.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A living process: its id, when it started (seconds since 1970) and its program's short name."""

    pid: int
    started: float
    name: str
    identity: str
    """What no other process has, also after the clock was set or the machine restarted: remember it with the pid."""


def look_up(pid: int) -> Process | None:
    """The process `pid`, None when there is none or it has ended and waits to be reaped."""
    if pid <= 0:
        return None
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            text = stat.read_text()
        except OSError:
            return None
        name, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()
        if fields[0] in "ZXx":
            return None
        ticks = int(fields[19])
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return Process(pid, _boot_time() + ticks / os.sysconf("SC_CLK_TCK"), name, f"{boot}:{ticks}")
    return _look_up_with_ps(pid)


def _boot_time() -> float:
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0


def _look_up_with_ps(pid: int) -> Process | None:
    asked = subprocess.run(
        ["ps", "-o", "stat=,lstart=,comm=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    parts = asked.stdout.split(None, 6)
    if asked.returncode != 0 or len(parts) < 7 or parts[0].startswith("Z"):
        return None
    started = time.mktime(time.strptime(" ".join(parts[1:6])))
    return Process(pid, started, Path(parts[6].strip()).name, f"{started:.0f}")
