"""Which Ray is the stack's: the process that its last start wrote down, and whether that Ray has a port.

A port says nothing about who answers there. Another Ray that took ours would get our token, and our applications in
place of all that it serves.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import psutil

from modelfleet.infra.local.processes import ProcessId, members
from modelfleet.infra.names import LAST_START

#: What listened at a port of a stack when it was last asked. A later start's processes are others.
_before: dict[tuple[str, int], psutil.Process] = {}


def write_last_start(folder: str | Path, process: ProcessId) -> None:
    """Writes down that `process` leads the session of this stack's Ray."""
    last = json.dumps({"pid": process.pid, "started": process.started})
    (Path(folder) / LAST_START).write_text(last, encoding="utf-8")


def last_start(folder: str | Path) -> ProcessId | None:
    """The process of this stack's last start; None where there was none."""
    with suppress(OSError, ValueError, KeyError):
        last = json.loads((Path(folder) / LAST_START).read_text(encoding="utf-8"))
        return ProcessId(last["pid"], last["started"])
    return None


def of_last_start(folder: str | Path) -> list[psutil.Process]:
    """The processes that still run in the session of this stack's last Ray.

    When Ray dies, its agent may live on and keep its port. No mark finds the agent, because it has set its own title.
    """
    leader = last_start(folder)
    return members(leader) if leader else []


def has_port(folder: str | Path, port: int) -> bool:
    """Whether a process of this stack's Ray listens at TCP `port`.

    The one that did before is asked first: to look through all processes of the machine takes 0.2 s on a busy one.
    """
    before = _before.get((str(folder), port))
    if before and before.is_running() and _listens(before, port):
        return True
    found = next((one for one in of_last_start(folder) if _listens(one, port)), None)
    if found:
        _before[str(folder), port] = found
    return found is not None


def _listens(process: psutil.Process, port: int) -> bool:
    # A process may end while it is asked.
    with suppress(psutil.Error, OSError):
        found = process.net_connections("tcp")
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in found)
    return False
