"""Lines of a log as JSON objects: `time` (UTC), `level`, `file`, `message`, and the application and request of it.

Beside the programs that print them, in the same ConfigMap, where `log_format` says whether anybody wants them
(`modelfleet:observability.logs`): a change of it restarts nothing. Needs nothing of this project.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

#: The file beside the programs that says `json`; without it lines stay as they are.
FORMAT = "log_format"
#: Seconds without output after which a Job's message is taken to be whole.
QUIET_SECONDS = 0.2
#: Seconds that the last lines get, which are few.
END_SECONDS = 5.0
CHUNK_BYTES = 1 << 16
_LEVEL = r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)"
_FULL_TIME = r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})"
LETTERS = {"D": "DEBUG", "I": "INFO", "W": "WARNING", "E": "ERROR", "F": "CRITICAL"}
HEADS = tuple(
    map(
        re.compile,
        (
            # `ServeFormatter.COMPONENT_LOG_FMT`, Ray 2.60: level, time, component, its id, a request's id if any.
            rf"{_LEVEL} {_FULL_TIME} \S+ \S+ (?:(?P<request_id>\S+) )?-- (?P<message>.*)",
            # `vllm.logger._FORMAT`, vLLM 0.32: the process, level, time without a year, the line of its source.
            rf"(?:\(\S+ pid=\d+\) )*{_LEVEL} (?P<time>\d\d-\d\d \d\d:\d\d:\d\d) \[\S+\] (?P<message>.*)",
            # `ray_constants.LOGGER_FORMAT` of Ray 2.60, and `RayLog` of its C++ (`src/ray/util/logging.cc`).
            rf"{_FULL_TIME}\s+{_LEVEL} (?P<message>.*)",
            rf"\[{_FULL_TIME} (?P<letter>[DIWEF]) \d+ \d+\] (?P<message>.*)",
        ),
    )
)
#: What Ray 2.60 writes into a process's output for whoever follows the file; a replica's name has its application.
MARK = re.compile(r":(?:job_id|task_name|actor_name):(?:ServeReplica:(?P<application>[^:]+))?")
#: `replica_<application>_<deployment>_<id>.log`, Ray Serve 2.60; our one deployment is called `vllm`.
REPLICA = re.compile(r"replica_(?P<application>.+)_vllm_[^_]+\.log")


def wanted(folder: Path) -> bool:
    """Whether the stack asks for JSON; `folder` is where the ConfigMap is mounted.

    Not the folder of this file: Python resolves the links to it, and the kubelet makes a new folder for each change.
    """
    try:
        return (folder / FORMAT).read_text(encoding="utf-8").strip() == "json"
    except OSError:
        return False


class Objects:
    """Turns lines into objects, one line each; remembers which application a file is of."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._applications: dict[str, str] = {}

    def __call__(self, file: str, lines: Iterable[str]) -> list[str]:
        """The objects of some lines of a file; those that begin none, such as a traceback's, are of the one before."""
        return [json.dumps(one, ensure_ascii=False) for one in self._objects(file, lines)]

    def _objects(self, file: str, lines: Iterable[str]) -> Iterator[dict[str, str]]:
        if named := REPLICA.fullmatch(file):
            self._applications[file] = named["application"]
        last: dict[str, str] | None = None
        for line in lines:
            if mark := MARK.match(line):
                self._applications[file] = mark["application"] or self._applications.get(file, "")
                continue
            head = next((found for one in HEADS if (found := one.match(line))), None)
            if head is None and last is not None:
                last["message"] += f"\n{line}"
                continue
            if last is not None:
                yield last
            last = self._begun(file, head.groupdict() if head else {"message": line})
        if last is not None:
            yield last

    def _begun(self, file: str, said: dict[str, str | None]) -> dict[str, str]:
        """Time and level of a line that says none are now and INFO."""
        level = said.get("level") or LETTERS[said.get("letter") or "I"]
        found = {"time": self._utc(said.get("time") or ""), "level": level, "file": file}
        of = {"application": self._applications.get(file), "request_id": said.get("request_id")}
        return {**found, **{name: value for name, value in of.items() if value}, "message": said["message"] or ""}

    def _utc(self, text: str) -> str:
        """A time of a process, which has this machine's zone, in RFC 3339."""
        now = self._now().astimezone()
        if text and not text.startswith(("20", "21")):
            text = f"{now.year}-{text}"
        try:
            at = datetime.fromisoformat(text.replace(",", ".")) if text else now
        except ValueError:  # 29 February, a moment after New Year
            at = now
        return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def take_over_output(file: str, folder: Path) -> None:
    """From here on, what this process and its children write to stdout and stderr becomes objects on stdout.

    Until the end of this process, whose traceback is among them. Nothing changes where nobody wants objects.
    """
    if not wanted(folder):
        return
    out = os.dup(1)
    reads, writes = os.pipe()
    for one in (1, 2):
        os.dup2(writes, one)
    os.close(writes)
    thread = threading.Thread(target=_pass_on, args=(reads, out, file), daemon=True)
    thread.start()
    atexit.register(_end, thread, out)


def _pass_on(reads: int, out: int, file: str) -> None:
    """Until every process has closed its end. A message is whole when nothing follows it for a moment."""
    objects, held, ended = Objects(), b"", False
    with os.fdopen(out, "w", encoding="utf-8", closefd=False) as stream:
        while not ended:
            ready = select.select([reads], [], [], QUIET_SECONDS if held else None)[0]
            more = os.read(reads, CHUNK_BYTES) if ready else b""
            held, ended = held + more, bool(ready) and not more
            if more and len(held) < CHUNK_BYTES:
                continue
            whole = len(held) if ended or len(held) >= CHUNK_BYTES else held.rfind(b"\n") + 1
            lines = [line for line in held[:whole].decode(errors="replace").splitlines() if line]
            stream.writelines(f"{line}\n" for line in objects(file, lines))
            stream.flush()
            held = held[whole:]


def _end(thread: threading.Thread, out: int) -> None:
    """Give this process's output back, so that the thread sees the end once its children have closed theirs."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for one in (1, 2):
        os.dup2(out, one)
    thread.join(END_SECONDS)
