"""What a starting replica is doing: the parts of its start with their seconds, and what its log says last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from modelfleet.serving.engine_log import start_parts

TAIL_BYTES = 16384
#: A replica's whole start: vLLM says some hundred lines.
START_BYTES = 1024**2
#: `(EngineCore pid=28138) INFO 11-24 10:39:38 [core.py:133] Initializing a V1 LLM engine …` (vLLM 0.32).
VLLM_LINE = re.compile(r"^\((?P<process>\w+) pid=\d+\) [A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\] (?P<text>.*)$")

#: `INFO 2026-11-30 21:00:01,123 app vllm abc -- fetching org/model …` (Ray 2.60 `SERVE_LOG_RECORD_FORMAT`).
FETCHING = re.compile(r" -- (?P<text>fetch(?:ing|ed) .*|\d+ of \d+ MB, .*)$")
#: The end of a download (`serving/hub.py`, `serving/mirror/download.py`).
FETCHED = re.compile(r"^fetched .* in (?P<seconds>\d+) s$")


def doing(details: dict[str, Any], logs: Path) -> str:
    """One line about an application's progress from its details (`/api/serve/applications/`) and Ray's log folder."""
    for deployment in details.get("deployments", {}).values():
        for replica in deployment.get("replicas", []):
            if replica.get("state") == "STARTING" and (line := _starting(replica, logs)):
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


def _starting(replica: dict[str, Any], logs: Path) -> str:
    """The parts of the start, and vLLM's last line; before vLLM says anything, what is fetched or loaded."""
    name = f"worker-{replica.get('worker_id')}-*-{replica.get('pid')}"
    text = "\n".join(line for end in ("out", "err") for log in logs.glob(f"{name}.{end}") for line in _lines(log))
    last = next((found["text"] for one in reversed(text.splitlines()) if (found := VLLM_LINE.match(one))), "")
    fetching, seconds = _fetching(replica, logs)
    if not last and fetching:
        return f"download now: {fetching}"
    downloaded = f"download {seconds} s" if seconds else ""
    if not last:
        return f"{downloaded}, import now" if downloaded else ""
    return ": ".join(filter(None, (", ".join(filter(None, (downloaded, start_parts(text)))), last)))


def _fetching(replica: dict[str, Any], logs: Path) -> tuple[str, int]:
    """What the replica's own log says last of weights that are still fetched, `fetching org/model: 812 MB so far`.

    Also the seconds of the downloads that have ended.
    """
    if not (path := replica.get("log_file_path")):
        return "", 0
    said = [found["text"] for line in _lines(logs / str(path).lstrip("/")) if (found := FETCHING.search(line))]
    ended = [found for one in said if (found := FETCHED.match(one))]
    return "" if not said or FETCHED.match(said[-1]) else said[-1], sum(int(one["seconds"]) for one in ended)


def _last_lines(log: Path) -> list[str]:
    return _lines(log, TAIL_BYTES)


def _lines(log: Path, most: int = START_BYTES) -> list[str]:
    if not log.is_file():
        return []
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - most))
        return [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
