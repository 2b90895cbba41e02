"""Takes away the locks that a killed `pulumi` left in a file backend, and no others.

    clear_dead_locks("file:///…/.modelfleet/state")     # all stacks of the backend

`pulumi cancel` deletes every lock, also that of a run which still works. Here a lock goes only when it was made on
this machine and its process is gone: no such pid, or one that started after the lock was written, or another program.
Standard library only: the `pulumi` command imports it.
"""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tools.process import look_up


@dataclass(frozen=True)
class Lock:
    """One lock file: `pulumi` process `pid` on `host` has held `stack` since `since` (seconds since 1970)."""

    file: Path
    stack: str
    pid: int
    host: str
    since: float

    def sentence(self) -> str:
        """Who holds or held it, in one line."""
        when = datetime.fromtimestamp(self.since).isoformat(sep=" ", timespec="seconds")
        return f"stack {self.stack} is locked by pulumi process {self.pid} on {self.host} since {when}"


def locks(backend_url: str, stack: str | None = None) -> list[Lock]:
    """The locks of a file backend, of one stack when named; [] for another kind of backend."""
    parts = urlsplit(backend_url)
    if parts.scheme != "file":
        return []
    root = Path(unquote(parts.netloc + parts.path)).expanduser() / ".pulumi" / "locks"
    found = [_read(file, root) for file in sorted(root.rglob("*.json"))]
    return [lock for lock in found if lock is not None and stack in (None, lock.stack)]


def is_dead(lock: Lock) -> bool:
    """Whether the lock's process is certainly gone; False for a lock of another machine."""
    if lock.host != socket.gethostname():
        return False
    process = look_up(lock.pid)
    # A second of tolerance: the kernel's clock ticks and the lock's time are not read together.
    return process is None or process.started > lock.since + 1 or not process.name.startswith("pulumi")


def clear_dead_locks(backend_url: str, stack: str | None = None) -> list[Lock]:
    """Removes the locks whose process is gone and returns them; locks of living processes stay."""
    dead = [lock for lock in locks(backend_url, stack) if is_dead(lock)]
    for lock in dead:
        lock.file.unlink(missing_ok=True)
    return dead


def _read(file: Path, root: Path) -> Lock | None:
    try:
        content = json.loads(file.read_text())
        return Lock(
            file=file,
            stack=file.parent.relative_to(root).name,
            pid=int(content["pid"]),
            host=str(content["hostname"]),
            since=_seconds(str(content["timestamp"])),
        )
    except FileNotFoundError:
        return None  # its process let go of it just now
    except (ValueError, KeyError, TypeError):
        # Cut off while it was written: its time is that of the file, its process cannot be alive by pid 0.
        return Lock(file, file.parent.relative_to(root).name, 0, socket.gethostname(), file.stat().st_mtime)


def _seconds(timestamp: str) -> float:
    """Go's RFC 3339 with nanoseconds; Python reads microseconds."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", timestamp)).timestamp()
