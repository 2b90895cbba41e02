"""What this machine has, for the local target."""

from __future__ import annotations

import json
import mmap
import os
import re
import resource
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from modelfleet.infra.names import LAST_START, local_folder, mark
from modelfleet.infra.planning.local import MONITOR_PROGRAMS, Machine, Room
from modelfleet.infra.planning.monitoring import ALERT_WEBHOOK
from modelfleet.infra.reading.cards import these_gpus
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.accelerators import CPU

#: The kernel's file, which is there where SELinux is on: 1 while it is enforcing.
SELINUX = Path("/sys/fs/selinux/enforce")


def this_machine(stack: LoadedStack, root: Path) -> Machine:
    """All memory of this machine, whoever uses it now: a plan does not change with what else runs.

    Its cards are looked at only where a pool has GPUs, less what this stack's own processes have of them.
    """
    wanted = any(pool.accelerator != CPU for pool in stack.config.pools)
    folder = local_folder(root, stack.name)
    gpus = these_gpus(mark(folder, "ray"), last_session=_left_session(folder)) if wanted else None
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = _hub_cache(cache)
    programs = monitor_programs() if stack.config.observability.metrics == "own" else None
    return Machine(
        psutil.virtual_memory().total,
        gpus,
        open_files=None if most == resource.RLIM_INFINITY else most,
        rooms=(
            room("this stack's own", folder),
            room("what is downloaded", cache / "modelfleet"),
            room("Ray's session", Path(tempfile.gettempdir())),
        ),
        weights_room=room("weights", hub) if wanted else None,
        weights_here=_weights_in(hub) if wanted else (),
        executable_memory=_executable_memory(),
        selinux=SELINUX.is_file() and SELINUX.read_text().strip() == "1",
        programs=programs,
        alertmanager=_version((programs or {}).get("alertmanager")) if ALERT_WEBHOOK in stack.secrets else None,
    )


def monitor_programs() -> dict[str, str]:
    """The paths of Prometheus and Alertmanager, of those that are on PATH."""
    found = ((name, next(filter(None, map(shutil.which, known)), None)) for name, known in MONITOR_PROGRAMS.items())
    return {name: path for name, path in found if path}


def _version(program: str | None) -> tuple[int, int] | None:
    """What `PROGRAM --version` says first: `alertmanager, version 0.25.0 (branch: …)`; None where it says none."""
    if program is None:
        return None
    with suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
        if found := re.search(r"version (\d+)\.(\d+)", said.stdout):
            return int(found[1]), int(found[2])
    return None


def _executable_memory() -> bool:
    """Whether this process gets memory that it may write and execute, as oneDNN's kernels and ctypes do.

    SELinux's `deny_execmem` and systemd's MemoryDenyWriteExecute forbid it; torch then says `could not create a
    primitive` (2.13, tried with PR_SET_MDWE on 2026-12-01).
    """
    wanted = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    try:
        mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, wanted).close()
    except PermissionError:
        return False
    return True


def room(what: str, folder: Path) -> Room:
    """The folder, or the nearest one above it that is there."""
    there = next(one for one in (folder, *folder.resolve().parents) if one.is_dir())
    return Room(what, str(there), shutil.disk_usage(there).free, os.access(there, os.W_OK | os.X_OK))


def _hub_cache(cache: Path) -> Path:
    """huggingface_hub's folder (its constants.py), without its import of half a second."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub"


def _weights_in(hub: Path) -> tuple[tuple[str, int], ...]:
    """The bytes that the Hub's cache has of each model's whole files, by its id: a half one begins anew."""
    found = []
    for folder in sorted(hub.glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        with suppress(OSError):  # removed meanwhile
            whole = [one for one in (folder / "blobs").iterdir() if one.suffix != ".incomplete"]
            found.append((name, sum(one.stat().st_blocks * 512 for one in whole)))
    return tuple(found)


def _left_session(folder: Path) -> int | None:
    """The session of the stack's last Ray where its leader has ended; None where it runs, and has the mark itself.

    Until the last of a session ends, no other process gets its leader's id.
    """
    with suppress(OSError, ValueError, KeyError):
        leader = int(json.loads((folder / LAST_START).read_text(encoding="utf-8"))["pid"])
        return None if psutil.pid_exists(leader) else leader
    return None
