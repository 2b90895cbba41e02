"""What a starting replica is doing: vLLM's last log line, or else the deployment's own message."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

TAIL_BYTES = 16384
#: `(EngineCore pid=28138) INFO 11-24 10:39:38 [core.py:133] Initializing a V1 LLM engine …` (vLLM 0.32).
VLLM_LINE = re.compile(r"^\((?P<process>\w+) pid=\d+\) [A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\] (?P<text>.*)$")


def doing(details: dict[str, Any], logs: Path) -> str:
    """One line about an application's progress from its details (`/api/serve/applications/`) and Ray's log folder."""
    for deployment in details.get("deployments", {}).values():
        for replica in deployment.get("replicas", []):
            if replica.get("state") == "STARTING" and (line := _last_vllm_line(replica, logs)):
                return f"starting the replica: {line}"
    for deployment in details.get("deployments", {}).values():
        if message := " ".join((deployment.get("message") or "").split()):
            return message
        if any(replica.get("state") == "STARTING" for replica in deployment.get("replicas", [])):
            return "starting the replica: loading Python modules"
    return " ".join((details.get("message") or "").split()) or str(details["status"]).lower()


def tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log file that are not empty, joined into one; empty when there are none yet."""
    return " | ".join(_last_lines(log)[-lines:])[-600:]


def _last_vllm_line(replica: dict[str, Any], logs: Path) -> str:
    pattern = f"worker-{replica.get('worker_id')}-*-{replica.get('pid')}.out"
    for log in logs.glob(pattern):
        for line in reversed(_last_lines(log)):
            if match := VLLM_LINE.match(line):
                return match["text"]
    return ""


def _last_lines(log: Path) -> list[str]:
    if not log.is_file():
        return []
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
