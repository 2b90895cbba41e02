"""Writes what Serve and its replicas log to the container's own output, where it outlives the pod.

Ray keeps these logs in files, which go with the pod: the first cause of a failed start with them. Whatever collects the
output of containers gets it from here. Mounted from a ConfigMap, started by the postStart hook of head and workers,
run by the image's Python; needs nothing of this project.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

LOGS = Path("/tmp/ray/session_latest/logs")  # noqa: S108  the container's own; where Ray writes unless it is told otherwise
#: Serve's controller, proxies and replicas, and the output of replicas' processes, which is vLLM's.
PATTERNS = ("serve/*.log", "worker-*.out", "worker-*.err")
#: The records of usage of one hour: JSON lines for a log shipper, without the file's name before them.
RECORDS = "usage/*/date=%Y-%m-%d/hour=%H/*.jsonl"
#: What Ray itself writes; only as objects, which can be filtered by `file` and `level`.
OF_RAY = ("gcs_server.out", "raylet.out", "dashboard.log")
POLL_SECONDS = 1.0
#: More is not read at once, so that one file does not hold the others up.
CHUNK_BYTES = 1 << 20


#: What is written for a file's name and its new lines.
Words = Callable[[str, list[str]], list[str]]


def named(file: str, lines: list[str]) -> list[str]:
    """Each line with the name of its file."""
    return [f"{file}: {line}" for line in lines]


class Follower:
    """Passes on each whole line once, also of files that are replaced when they have grown."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[int, int]] = {}
        """Path to (inode, bytes read)."""

    def lines(self, words: Words = named, patterns: Sequence[str] = PATTERNS) -> list[str]:
        """What has been written since the last call: to files of these patterns in these words, and all records."""
        logs = sorted(path for pattern in patterns for path in self._folder.glob(pattern))
        # Of the last hour, too: its last lines may have come since the last call. Older files do not grow.
        hours = (time.gmtime(time.time() - ago) for ago in (3600, 0))
        records = [path for hour in hours for path in sorted(self._folder.glob(time.strftime(RECORDS, hour)))]
        return [
            *(line for path in logs for line in words(path.name, self._new(path))),
            *(line for path in records for line in self._new(path)),
        ]

    def _new(self, path: Path) -> list[str]:
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                inode, offset = self._seen.get(path, (found.st_ino, 0))
                if inode != found.st_ino or found.st_size < offset:
                    offset = 0
                file.seek(offset)
                data = file.read(CHUNK_BYTES)
        except OSError:
            return []  # it has just gone
        whole = data.rfind(b"\n") + 1 or (len(data) if len(data) == CHUNK_BYTES else 0)
        self._seen[path] = (found.st_ino, offset + whole)
        return [line for line in data[:whole].decode(errors="replace").splitlines() if line]


def main(logs: Path = LOGS) -> None:
    """Follow for as long as the container runs."""
    sys.path.insert(0, str(Path(__file__).parent))  # an image may keep Python from looking there by itself
    import json_lines  # type: ignore[import-not-found]

    objects, follower = json_lines.Objects(), Follower(logs)
    while True:
        # Asked each time: the kubelet renews the file, and nothing restarts for it.
        asked = (objects, (*PATTERNS, *OF_RAY)) if json_lines.wanted(Path(__file__).parent) else (named, PATTERNS)
        for line in follower.lines(*asked):
            print(line)
        sys.stdout.flush()
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
