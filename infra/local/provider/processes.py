"""Processes by id: a process id alone may be another program's by now, so the start time is kept beside it.

Every process that the plugin starts leads a session of its own, which its children stay in, and carries a mark in its
environment. The session says which processes belong together, the mark finds what a killed run left behind (not every
child shows it: programs that set their title overwrite their environment). Nothing is ever looked up by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "MODELFLEET_PROCESS"
#: Start times come from the kernel's boot time, which moves a little when the clock is set.
START_TOLERANCE_S = 2.0


@dataclass(frozen=True)
class ProcessId:
    """One process, for certain: its id and when it started (seconds since the epoch)."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has `pid` now; raises `psutil.NoSuchProcess`."""
        return cls(pid, round(psutil.Process(pid).create_time(), 2))

    def find(self) -> psutil.Process | None:
        """The running process, or None when it ended (also when another one has its id now)."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < START_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def mark(folder: str, role: str) -> str:
    """The mark of what the stack with run-time folder `folder` runs as `role`, such as `ray`."""
    return f"{hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:12]}-{role}"


def members(leader: ProcessId) -> list[psutil.Process]:
    """The running processes of the session that `leader` began, itself included, also when it has ended since."""
    with contextlib.suppress(psutil.NoSuchProcess):
        now = psutil.Process(leader.pid)
        if abs(now.create_time() - leader.started) >= START_TOLERANCE_S:
            return []  # the id is another program's by now
    return _in_sessions({leader.pid})


def left_behind(value: str) -> list[psutil.Process]:
    """This user's running processes of the sessions that a process with the mark `value` began.

    A marked process in a session that another living program leads is not followed: that may be the user's shell.
    """
    sessions = set()
    for process in psutil.process_iter():
        # Other users' processes cannot be read, and are none of ours.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == value:
                session = os.getsid(process.pid)
                if session == process.pid or not psutil.pid_exists(session):
                    sessions.add(session)
    return _in_sessions(sessions)


def _in_sessions(sessions: set[int]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter() if sessions else ():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def spawn(command: Sequence[str], *, mark: str, log: Path, cwd: Path, env: Mapping[str, str]) -> ProcessId:
    """Starts `command` detached, so that it outlives this process; its output is appended to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**env, MARK: mark},
            start_new_session=True,
        )
    return ProcessId.of(process.pid)


def end(processes: Iterable[psutil.Process], grace_s: float) -> None:
    """Asks the processes to end, waits `grace_s` seconds, then ends them by force."""
    asked = list(processes)
    for process in asked:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(asked, timeout=grace_s)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=grace_s)


def end_all(find: Callable[[], list[psutil.Process]], grace_s: float, deadline_s: float = 30.0) -> int:
    """Ends every process that `find` finds until it finds none, also those that appear meanwhile; returns how many."""
    ended, until = 0, time.monotonic() + deadline_s
    while (running := find()) and time.monotonic() < until:
        end(running, grace_s)
        ended += len(running)
    return ended
