"""What a replica's processes share in /dev/shm, and what replicas that were killed left there.

vLLM's processes of several workers talk over files that the last one to end removes (vLLM 0.32
`distributed/device_communicators/shm_broadcast.py`). Who is killed removes nothing, and the files take memory until the
pod ends. So each replica notes beside them what its processes have mapped, and the next one on the node removes what
those noted that no longer run. Names alone would not tell whose a file is: on this machine others have the same kind.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import psutil

FOLDER: Final = Path("/dev/shm")  # noqa: S108  the kernel's, and its names are made by who maps them
#: `modelfleet-<process id>-<its start, clock ticks since boot>`: process ids come again, in a restarted container too.
_NOTE: Final = "modelfleet-"
#: Ray's object store is in there too, and is Ray's.
_RAYS: Final = "plasma"


def note(folder: Path = FOLDER) -> None:
    """Writes down what this process and its children have mapped in `folder`, in the place of an earlier note."""
    children = psutil.Process().children(recursive=True)
    names = {name for pid in (os.getpid(), *(one.pid for one in children)) for name in _mapped(pid, folder)}
    if names:
        _note_of(os.getpid(), folder).write_text("\n".join(sorted(names)))


def remove_left(folder: Path = FOLDER) -> list[str]:
    """Removes what replicas of this user noted that no longer run, and what this one did; returns the names."""
    removed: list[str] = []
    for path in sorted(folder.glob(f"{_NOTE}[0-9]*-[0-9]*")) if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # replicas that start together meet the same notes
            if path.lstat().st_uid != os.getuid() or _runs(path):
                continue
            for name in path.read_text().split():
                if (left := folder / Path(name).name).exists():
                    left.unlink(missing_ok=True)
                    removed.append(name)
            path.unlink()
    return removed


def _note_of(pid: int, folder: Path) -> Path:
    """Where the process's note is; raises `OSError` where there is no such process.

    The start is the 22nd field (man 5 proc_pid_stat), the 20th after the name, which may have spaces. psutil's
    `create_time` follows the clock, and then a replica that runs would count as dead.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return folder / f"{_NOTE}{pid}-{fields[19]}"


def _runs(path: Path) -> bool:
    """Whether the note's process still runs, and is not this one, which removes its own at its end."""
    pid = int(path.name.split("-")[1])
    if pid == os.getpid():
        return False
    try:
        return _note_of(pid, path.parent) == path
    except OSError:
        return False


def _mapped(pid: int, folder: Path) -> set[str]:
    """Names of the files in `folder` that a process has mapped; none of one that has ended meanwhile."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    paths = [line.split(maxsplit=5)[-1] for line in lines if not line.endswith("(deleted)")]
    names = {Path(path).name for path in paths if path.startswith(f"{folder}/")}
    return {name for name in names if not name.startswith(_RAYS)}
