"""`python -m tools.kubernetes.node.keeper CGROUP_PREFIX FOLDER`: waits for the end of its input, then leaves nothing.

The kernel ends a cluster's processes, mounts and addresses with the process that made them, however that ends. Cgroups
and folders outlive it, so this waits outside.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from tools.kubernetes.node.machine import CGROUPS

#: A cgroup can go when its last process has gone, which for a container takes moments.
SECONDS = 30.0


def main(prefix: str, folder: str) -> None:
    """Wait, then remove the cgroups whose names start with the prefix, and the folder if one is named."""
    sys.stdin.buffer.read()
    for state in CGROUPS.glob(f"freezer/{prefix}*/**/freezer.state"):  # a paused process does not even die
        state.write_text("THAWED")
    end = time.monotonic() + SECONDS
    while (left := [path for path in CGROUPS.glob(f"*/{prefix}*") if not _removed(path)]) and time.monotonic() < end:
        time.sleep(0.1)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    if left:
        raise SystemExit(f"cgroups with processes in them: {', '.join(map(str, left))}")


def _removed(cgroup: Path) -> bool:
    for path in sorted(cgroup.rglob("*/"), reverse=True):
        if not _rmdir(path):
            return False
    return _rmdir(cgroup)


def _rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(*sys.argv[1:])
