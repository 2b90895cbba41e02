"""CPU time by kind of process below one root process, in seconds of user and system time."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

#: The kind of a process by part of its title; the first match counts.
KINDS = (
    ("raylet/raylet", "raylet"),  # first: its command line has those of its agents
    ("EngineCore", "engine"),
    ("VLLM::Worker", "engine"),
    ("ServeReplica", "front"),
    ("vllm serve", "front"),
    ("VLLM::APIServer", "front"),
    ("entrypoints", "front"),
    ("haproxy", "proxy"),
    ("ProxyActor", "proxy"),
    ("HAProxyManager", "proxy manager"),
    ("ServeController", "controller"),
    ("gcs_server", "GCS"),
    ("monitor.py", "autoscaler"),
    ("DashboardAgent", "agents"),
    ("RuntimeEnvAgent", "agents"),
    ("dashboard/agent.py", "agents"),
    ("runtime_env/agent", "agents"),
    ("dashboard", "dashboard"),
)
#: What a request passes outside the engine: application, proxies and gateway, without Ray's own idle work.
AROUND = ("front", "proxy", "proxy manager", "gateway")


READY_S = 900.0
"""Seconds that a server gets to answer: a busy machine takes minutes to import vLLM."""


@dataclass
class Tree:
    """A started program and its descendants."""

    root: subprocess.Popen[bytes]
    extra: dict[int, str] = field(default_factory=dict)

    def seconds(self) -> dict[str, float]:
        """CPU seconds so far, by kind."""
        total: dict[str, float] = {}
        for pid, kind in self._kinds().items():
            with suppress(psutil.Error):
                times = psutil.Process(pid).cpu_times()
                total[kind] = total.get(kind, 0.0) + times.user + times.system
        return total

    def resident_mib(self) -> dict[str, float]:
        """Resident memory now, by kind, in MiB."""
        total: dict[str, float] = {}
        for pid, kind in self._kinds().items():
            with suppress(psutil.Error):
                total[kind] = total.get(kind, 0.0) + psutil.Process(pid).memory_info().rss / 2**20
        return total

    def _kinds(self) -> dict[int, str]:
        kinds = dict(self.extra)
        for process in self.members():
            with suppress(psutil.Error):
                title = " ".join(process.cmdline())
                kinds.setdefault(process.pid, next((kind for part, kind in KINDS if part in title), "other"))
        return kinds

    def members(self) -> list[psutil.Process]:
        """The root, its descendants, and what is left of its session: parts of Ray outlive their parent."""
        found: dict[int, psutil.Process] = {}
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.root.pid)
            found |= {one.pid: one for one in (root, *root.children(recursive=True))}
        for process in psutil.process_iter():
            with suppress(OSError):
                if os.getsid(process.pid) == self.root.pid:
                    found.setdefault(process.pid, process)
        return list(found.values())

    def end(self) -> None:
        """End all of them, the root first so that it can clean up."""
        members = self.members()
        for process in members:
            # If left alive, it would start another HAProxy, which we would not see, when the replica goes.
            with suppress(psutil.Error):
                if "HAProxyManager" in " ".join(process.cmdline()):
                    process.kill()
        with suppress(psutil.Error):
            self.root.terminate()
        psutil.wait_procs(members, timeout=15)
        for process in members:
            with suppress(psutil.Error):
                if process.is_running():
                    process.kill()
        psutil.wait_procs(members, timeout=5)
        self.root.wait()


def difference(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """CPU seconds spent between two readings."""
    return {kind: seconds - before.get(kind, 0.0) for kind, seconds in after.items()}


def wait_for(what: str, ready: object, tree: Tree, log: str, timeout_s: float = READY_S) -> None:
    """Wait until `ready()`; raises `RuntimeError` with the end of the log if the program ends or is never ready."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if ready():  # type: ignore[operator]
            return
        if tree.root.poll() is not None:
            raise RuntimeError(f"{what} ended with exit code {tree.root.returncode}: {tail(log)}")
        time.sleep(0.25)
    raise RuntimeError(f"{what} is not ready after {timeout_s:.0f} s: {tail(log)}")


def tail(log: str, characters: int = 600) -> str:
    """The end of a log file, for an error that outlives the file."""
    path = Path(log)
    return path.read_text(errors="replace").strip()[-characters:] if path.is_file() else f"see {log}"
