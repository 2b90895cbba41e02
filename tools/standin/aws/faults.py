"""Scripted failures of AWS calls, for tests only: a JSON file named by `MODELFLEET_STANDIN_FAULTS`.

    {"once": true, "code": "InternalFailure"}        each different call fails the first time it is made
    {"at": 7, "code": "InternalFailure"}             the seventh call of a plugin process fails
    {"first": 40, "code": "ThrottlingException"}     the first forty calls fail, the rest succeed
    {"before": {"CreateNodegroup": 30}}              the call sleeps 30 s before it is sent, a time to kill it in
    {"after": {"CreateNodegroup": 30}}               the call is carried out; its answer comes 30 s later

`log` names a file that gets one line per call. Reads do not fail; otherwise no preview could run.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

VARIABLE = "MODELFLEET_STANDIN_FAULTS"
#: Operations that change nothing.
READS = ("Get", "Describe", "List", "Head")


class Faults:
    """The script and its progress."""

    def __init__(self, script: dict[str, Any]) -> None:
        self._script = script
        self._count = 0
        self._lock = threading.Lock()

    def before(self, service: str, operation: str, about: str = "") -> None:
        """Called before each AWS call; raises the scripted error in the form that AWS would return."""
        if operation.startswith(READS):
            return
        with self._lock:
            self._count += 1
            count = self._count
            line = f"{service}:{operation}:{about}"
            seen = self._note(line)
        time.sleep(self._script.get("before", {}).get(operation, 0))
        if self._fails(count, seen):
            code = self._script.get("code", "InternalFailure")
            raise ClientError({"Error": {"Code": code, "Message": f"scripted failure of call {count}"}}, operation)

    def after(self, operation: str) -> None:
        """Called after a call was carried out and answered."""
        if seconds := self._script.get("after", {}).get(operation, 0):
            self._note(f"{operation} was carried out")
            time.sleep(seconds)

    def _note(self, line: str) -> bool:
        """Logs the call; returns whether it was made before."""
        log = self._script.get("log")
        if not log:
            return False
        path = Path(log)
        seen = path.is_file() and line in path.read_text(encoding="utf-8").splitlines()
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        return seen

    def _fails(self, count: int, seen: bool) -> bool:
        return bool(
            (self._script.get("once") and not seen)
            or count == self._script.get("at")
            or count <= self._script.get("first", 0)
        )


def scripted() -> Faults | None:
    """The faults that the environment names; None outside tests."""
    path = os.environ.get(VARIABLE)
    return Faults(json.loads(Path(path).read_text(encoding="utf-8"))) if path else None
