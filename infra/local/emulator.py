"""The S3 emulator of the local stack: moto on loopback, in its own process (`s3_server.py`).

    running = start(8002, folder)    # finds the one that runs, or starts one and waits until it answers
    stop(8002, folder)               # only what `start` started

moto keeps everything in memory: when it ends, its buckets are gone, and the next `pulumi up` makes them again.
`folder` holds its log and `s3-<port>.json`, which has its process id and, in case the id is reused, its start time.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from modelfleet.infra.local.ports import LOOPBACK, require_free
from modelfleet.infra.local.processes import ProcessId, end, spawn
from modelfleet.serving.config.errors import SetupError

REGION = "us-east-1"
#: moto takes any credentials; these keep the user's real ones out of Ray's environment and out of the state.
ACCESS_KEY = "modelfleet-local"

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
HANG_TIMEOUT_S = 60.0


def endpoint(port: int) -> str:
    """The emulator's URL for S3 clients."""
    return f"http://{LOOPBACK}:{port}"


def environment(port: int) -> dict[str, str]:
    """Environment variables for the AWS SDKs in the replicas and in Ray's download of the code."""
    return {
        "AWS_ENDPOINT_URL": endpoint(port),
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": ACCESS_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        # A user's profile must not lead the replicas to a real account.
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


@dataclass(frozen=True)
class Running:
    """A running emulator. `started_now`: this call started it, so its buckets are empty."""

    port: int
    process: ProcessId
    log: Path
    started_now: bool = False


def start(port: int, folder: Path) -> Running:
    """The emulator on `port`, started if it does not run. Raises `SetupError` (another program may have the port)."""
    with _one_at_a_time(port, folder):
        running = is_running(port, folder)
        if running is not None and _answers_in_time(port):
            return running
        if running is not None:  # ours, running, but hung
            _end(running.process)
        require_free({"s3Port": port})
        return _start(port, folder)


def is_running(port: int, folder: Path) -> Running | None:
    """The emulator that `start` started on `port`, if it still runs."""
    try:
        note = json.loads(_note(port, folder).read_text(encoding="utf-8"))
        process = ProcessId(int(note["pid"]), float(note["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Running(port, process, _log(port, folder)) if process.find() else None


def stop(port: int, folder: Path) -> bool:
    """Ends the emulator that `start` started on `port`; False when there was none."""
    with _one_at_a_time(port, folder):
        running = is_running(port, folder)
        if running is not None:
            _end(running.process)
        _note(port, folder).unlink(missing_ok=True)
        return running is not None


def _start(port: int, folder: Path) -> Running:
    log = _log(port, folder)
    command = [sys.executable, "-P", "-m", "modelfleet.infra.local.s3_server", str(port)]
    process = spawn(command, mark=f"s3-{port}", log=log, cwd=Path("/"), env=_environment())
    try:
        _wait_until_it_answers(process, port, log)
        _write_note(port, folder, process)
    except BaseException:
        _end(process)
        raise
    return Running(port, process, log, started_now=True)


def _environment() -> dict[str, str]:
    """moto's environment, without the caller's AWS credentials and settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    kept["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"  # roles attach AWS's own policies; read at the first IAM call
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1"}


def _wait_until_it_answers(process: ProcessId, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(port):
        if process.find() is None:
            tail = " ".join(log.read_text(errors="replace").split())[-300:]
            raise SetupError(f"the S3 emulator ended while starting: {tail} (log: {log})")
        if time.monotonic() > deadline:
            raise SetupError(f"the S3 emulator did not answer within {START_TIMEOUT_S:.0f} s (log: {log})")
        time.sleep(0.1)


def _answers_in_time(port: int) -> bool:
    """Whether a running emulator answers. It gets a while: a busy machine is slow, and ending it loses all buckets."""
    deadline = time.monotonic() + HANG_TIMEOUT_S
    while not (alive := _answers(port)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return alive


def _answers(port: int) -> bool:
    try:
        straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is never behind a proxy
        with straight.open(f"{endpoint(port)}/moto-api/", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _end(process: ProcessId) -> None:
    if found := process.find():
        end([found], STOP_TIMEOUT_S)


def _write_note(port: int, folder: Path, process: ProcessId) -> None:
    part = _note(port, folder).with_suffix(".part")
    part.write_text(json.dumps({"pid": process.pid, "started": process.started}), encoding="utf-8")
    part.replace(_note(port, folder))


def _note(port: int, folder: Path) -> Path:
    return folder / f"s3-{port}.json"


def _log(port: int, folder: Path) -> Path:
    return folder / f"s3-{port}.log"


def _one_at_a_time(port: int, folder: Path) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"s3-{port}.lock")
