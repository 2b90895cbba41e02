"""The S3 emulator of the local stack: `moto_server` on loopback, in a process of its own.

    running = start(8002)            # finds the one that runs, or starts one and waits until it answers
    stop(8002)                       # only what `start` started

    python -m tools.emulator start|stop|status --port 8002

moto keeps everything in memory: when it ends, its buckets are gone, and the next `pulumi up` makes them again.
The state folder holds `s3-<port>.json` (pid and identity, so that a reused pid is never mistaken for it) and its log.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.config.errors import ModelfleetError, SetupError
from tools.paths import RUN_TIME
from tools.process import look_up
from tools.progress import Step, say

HOST = "127.0.0.1"
SETTING = "modelfleet:local.s3Port"
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 10.0
HANG_SECONDS = 60.0


@dataclass(frozen=True)
class Running:
    """A running emulator."""

    port: int
    pid: int
    log: Path
    started_now: bool = False
    """Whether this call started it (its buckets are empty then)."""

    @property
    def url(self) -> str:
        """The endpoint for S3 clients."""
        return f"http://{HOST}:{self.port}"


def start(port: int, state_dir: Path = RUN_TIME) -> Running:
    """The emulator on `port`, started if it does not run. Raises `SetupError`, also when the port is another's."""
    with _one_at_a_time(port, state_dir):
        running = is_running(port, state_dir)
        if running is not None and _answers_in_time(port):
            return running
        if running is not None:  # it is ours, it lives, but it hangs
            _end(running.pid)
        _refuse_taken_port(port)
        with Step(f"starting the S3 emulator on {HOST}:{port}"):
            return _start(port, state_dir)


def is_running(port: int, state_dir: Path = RUN_TIME) -> Running | None:
    """The emulator that `start` started on `port` and that still lives."""
    try:
        note = json.loads(_note(port, state_dir).read_text())
        pid, identity = int(note["pid"]), str(note["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    process = look_up(pid)
    if process is None or process.identity != identity:
        return None
    return Running(port, pid, _log(port, state_dir))


def stop(port: int, state_dir: Path = RUN_TIME) -> bool:
    """Ends the emulator that `start` started on `port`; False when there was none."""
    with _one_at_a_time(port, state_dir):
        running = is_running(port, state_dir)
        if running is not None:
            _end(running.pid)
        _note(port, state_dir).unlink(missing_ok=True)
        return running is not None


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code (`status`: 0 when it runs, 3 when not)."""
    parser = argparse.ArgumentParser(prog="python -m tools.emulator", description="The S3 emulator of the local stack.")
    parser.add_argument("action", choices=["start", "stop", "status"])
    parser.add_argument("--port", type=int, default=8002)
    parser.add_argument("--state-dir", type=Path, default=RUN_TIME)
    chosen = parser.parse_args(argv)
    try:
        return _act(chosen.action, chosen.port, chosen.state_dir)
    except ModelfleetError as error:
        print(f"emulator: {error}", file=sys.stderr)
        return error.exit_code


def _act(action: str, port: int, state_dir: Path) -> int:
    if action == "start":
        running = start(port, state_dir)
        say("started" if running.started_now else "it ran already")
        print(running.url)
        return 0
    if action == "stop":
        say(f"S3 emulator on port {port}: {'stopped' if stop(port, state_dir) else 'none of ours runs'}")
        return 0
    found = is_running(port, state_dir)
    print(f"{found.url} pid {found.pid} log {found.log}" if found else f"no S3 emulator of ours on port {port}")
    return 0 if found else 3


def _start(port: int, state_dir: Path) -> Running:
    log = _log(port, state_dir)
    with log.open("ab") as output:
        process = subprocess.Popen(
            # It serves each connection in a thread of its own (Werkzeug, threaded): ranged reads run in parallel.
            [sys.executable, "-P", "-m", "moto.server", "-H", HOST, "-p", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    try:
        _wait_until_it_answers(process, port, log, deadline)
        lives = look_up(process.pid)
        if lives is None:
            raise SetupError(f"the S3 emulator ended at once; its log: {log}")
        _write_note(port, state_dir, process.pid, lives.identity)
    except BaseException:
        _end(process.pid)
        raise
    return Running(port, process.pid, log, started_now=True)


def _environment() -> dict[str, str]:
    """moto's environment: no credentials and no settings of the caller's AWS account."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    kept["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"  # roles attach AWS's own policies; read at the first IAM call
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1"}


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path, deadline: float) -> None:
    while not _answers(port):
        if process.poll() is not None:
            tail = " ".join(log.read_text(errors="replace").split())[-300:]
            raise SetupError(f"the S3 emulator ended with exit code {process.returncode}: {tail}; its log: {log}")
        if time.monotonic() > deadline:
            raise SetupError(f"the S3 emulator does not answer after {START_TIMEOUT_SECONDS:.0f} s; its log: {log}")
        time.sleep(0.1)


def _answers_in_time(port: int) -> bool:
    """Whether a running emulator is alive: a busy machine makes it slow, and to end it is to lose all buckets."""
    deadline = time.monotonic() + HANG_SECONDS
    while not (alive := _answers(port)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return alive


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/moto-api/", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SetupError(
                f"port {port} on {HOST}, which the S3 emulator needs, cannot be used ({error.strerror}): another "
                f"program has it. End that program, or choose another port with {SETTING} in the stack's file"
            ) from error


def _end(pid: int) -> None:
    """SIGTERM, then SIGKILL, by process id."""
    for number, seconds in ((signal.SIGTERM, STOP_TIMEOUT_SECONDS), (signal.SIGKILL, STOP_TIMEOUT_SECONDS)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            _reap(pid)
            if look_up(pid) is None:
                return
            time.sleep(0.05)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # started by another process: its parent reaps it


def _write_note(port: int, state_dir: Path, pid: int, identity: str) -> None:
    part = _note(port, state_dir).with_suffix(".part")
    part.write_text(json.dumps({"pid": pid, "identity": identity}))
    part.replace(_note(port, state_dir))


def _note(port: int, state_dir: Path) -> Path:
    return state_dir / f"s3-{port}.json"


def _log(port: int, state_dir: Path) -> Path:
    return state_dir / f"s3-{port}.log"


@contextmanager
def _one_at_a_time(port: int, state_dir: Path) -> Iterator[None]:
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / f"s3-{port}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
