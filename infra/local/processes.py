"""Processes by id and start time: the id alone may belong to another program by now.

Every process that the plugin starts leads its own session, in which its children stay, and has a mark in its
environment. The session says which processes belong together; the mark finds what a killed run left behind. Not every
child shows the mark: programs that set their title overwrite their environment. Nothing is ever looked up by name.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from modelfleet.infra.names import MARK

#: Start times come from the kernel's boot time, which moves a little when the clock is set.
START_TOLERANCE_S = 2.0
#: As many as Ray gives its own workers (2.60 `_private/worker.py`).
MOST_OPEN_FILES = 65536


@dataclass(frozen=True)
class ProcessId:
    """One certain process: its id and its start time (seconds since the epoch)."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has `pid` now; raises `psutil.NoSuchProcess`."""
        return cls(pid, round(psutil.Process(pid).create_time(), 2))

    def find(self) -> psutil.Process | None:
        """The running process; None when it has ended, even if another one has its id now."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < START_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def members(leader: ProcessId) -> list[psutil.Process]:
    """The running processes of the session that `leader` began, itself included; it may have ended since."""
    with contextlib.suppress(psutil.NoSuchProcess):
        now = psutil.Process(leader.pid)
        if abs(now.create_time() - leader.started) >= START_TOLERANCE_S:
            return []  # the id belongs to another program by now
    return _in_sessions({leader.pid})


def left_behind(value: str) -> list[psutil.Process]:
    """This user's running processes in the sessions that a process with the mark `value` began.

    A marked process is skipped when another running program leads its session: that may be the user's shell.
    """
    sessions = set()
    for process in psutil.process_iter():
        # Other users' processes cannot be read, and are not ours.
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


def raise_open_files() -> None:
    """Lets this process, and all that it starts, have as many files open as it may, up to what Ray asks for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def spawn(command: Sequence[str], *, mark: str, log: Path, cwd: Path, env: Mapping[str, str]) -> ProcessId:
    """Starts `command` detached, so that it outlives this process; appends its output to `log`."""
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
    """Asks the processes to end, waits `grace_s` seconds, then kills the rest."""
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
    """Ends what `find` finds until it finds nothing, new processes included; returns how many it ended."""
    ended: set[psutil.Process] = set()  # one that is slow to die is found twice
    until = time.monotonic() + deadline_s
    while (running := find()) and time.monotonic() < until:
        end(running, grace_s)
        ended.update(running)
    return len(ended)
