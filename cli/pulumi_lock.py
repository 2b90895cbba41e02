"""Removes the locks that a killed `pulumi` left in a file backend, and no others.

    clear_dead_locks("file:///…/.modelfleet/state")     # all stacks of the backend

`pulumi cancel` deletes every lock, even that of a run still at work. This removes a lock only if it was made on this
machine and its process is gone: the pid does not exist, or belongs to a later process or to another program.
"""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil


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
        when = datetime.fromtimestamp(self.since).isoformat(sep=" ", timespec="seconds")  # noqa: DTZ006 - the user's clock
        return f"stack {self.stack} is locked by pulumi process {self.pid} on {self.host} since {when}"


def locks(backend_url: str, stack: str | None = None) -> list[Lock]:
    """The locks of a file backend, of one stack when named; [] for another kind of backend."""
    folder = _folder(backend_url)
    if folder is None:
        return []
    root = folder / "locks"
    found = [_read(file, root) for file in sorted(root.rglob("*.json"))]
    return [lock for lock in found if lock is not None and stack in (None, lock.stack)]


def is_dead(lock: Lock) -> bool:
    """Whether the lock's process is certainly gone; False for a lock of another machine."""
    if lock.host != socket.gethostname():
        return False
    try:
        process = psutil.Process(lock.pid)
        # A second of tolerance: the kernel's clock ticks and the lock's time are not read at the same moment.
        reused = process.create_time() > lock.since + 1 or not process.name().startswith("pulumi")
        return reused or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def clear_dead_locks(backend_url: str, stack: str | None = None) -> list[Lock]:
    """Removes the locks whose process is gone and returns them; locks of living processes stay.

    Where none lives, it also removes what a killed process left half written.
    """
    found = locks(backend_url, stack)
    dead = [lock for lock in found if is_dead(lock)]
    for lock in dead:
        lock.file.unlink(missing_ok=True)
    if len(dead) == len(found) and (folder := _folder(backend_url)) is not None:
        _remove_empty_attributes(folder / "stacks", stack)
    return dead


def _remove_empty_attributes(stacks: Path, stack: str | None) -> None:
    """A kill in the middle of a write leaves an empty `.attrs` next to a stack's state, and then Pulumi stops with EOF.

    The file backend writes that file in place (gocloud.dev, blob/fileblob/attrs.go); without it, it reads the state.
    """
    for file in stacks.rglob(f"{stack or '*'}.json*.attrs"):
        if file.stat().st_size == 0:
            file.unlink(missing_ok=True)


def _folder(backend_url: str) -> Path | None:
    """Where a file backend keeps its files; None for another kind of backend."""
    parts = urlsplit(backend_url)
    return Path(unquote(parts.netloc + parts.path)).expanduser() / ".pulumi" if parts.scheme == "file" else None


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
        return None  # its process has just released it
    except (ValueError, KeyError, TypeError):
        # Cut off while it was written: use the file's time, and pid 0, which no living process has.
        return Lock(file, file.parent.relative_to(root).name, 0, socket.gethostname(), file.stat().st_mtime)


def _seconds(timestamp: str) -> float:
    """Go's RFC 3339 with nanoseconds; Python reads microseconds."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", timestamp)).timestamp()
