"""The S3 emulator's process: found again, ended by id, and never confused with someone else's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelfleet.infra.local import emulator
from modelfleet.serving.config.errors import SetupError
from tests.ports import free_port
from tests.waiting import wait_until


def test_a_second_start_finds_the_running_one_and_stop_ends_it(tmp_path: Path) -> None:
    port = free_port()
    first = emulator.start(port, tmp_path)
    try:
        assert first.started_now
        again = emulator.start(port, tmp_path)
        assert (again.process, again.started_now) == (first.process, False)
        assert _listeners(first.process.pid) == {"127.0.0.1"}, "loopback only"
    finally:
        assert emulator.stop(port, tmp_path)
    assert first.process.find() is None
    assert not emulator.stop(port, tmp_path)


def test_two_starts_at_once_give_one_process(tmp_path: Path) -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: emulator.start(port, tmp_path), range(2)))
    emulator.stop(port, tmp_path)
    assert runs[0].process == runs[1].process
    assert sorted(run.started_now for run in runs) == [False, True]


def test_a_port_of_another_program_is_an_error_that_names_the_port_and_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SetupError) as error:
            emulator.start(port, tmp_path)
    assert f"port {port} is taken by process {os.getpid()}" in str(error.value)
    assert "modelfleet:local.s3Port" in str(error.value)
    assert error.value.exit_code == 2


def test_a_reused_pid_is_not_taken_for_the_emulator_and_is_not_ended(tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        note = {"pid": bystander.pid, "started": 17.0}
        (tmp_path / "s3-8002.json").write_text(json.dumps(note))
        assert emulator.is_running(8002, tmp_path) is None
        assert not emulator.stop(8002, tmp_path)
        assert bystander.poll() is None, "someone else's process must stay alive"
    finally:
        bystander.kill()
        bystander.wait()


def test_a_killed_emulator_is_started_again(tmp_path: Path) -> None:
    port = free_port()
    first = emulator.start(port, tmp_path)
    os.kill(first.process.pid, signal.SIGKILL)
    wait_until(lambda: first.process.find() is None, what="the end of the emulator")
    second = emulator.start(port, tmp_path)
    emulator.stop(port, tmp_path)
    assert second.started_now
    assert second.process != first.process


def test_ranged_reads_run_in_parallel(emulator: Any) -> None:
    """Many threads fetch weights in ranges, so answers must not wait for one another."""
    s3 = emulator.client()
    s3.create_bucket(Bucket="ranges", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    body = bytes(range(256)) * 4096
    s3.put_object(Bucket="ranges", Key="weights", Body=body)
    size = len(body) // 16
    gate = threading.Barrier(16)

    def part(index: int) -> bytes:
        answer = s3.get_object(Bucket="ranges", Key="weights", Range=f"bytes={index * size}-{(index + 1) * size - 1}")
        gate.wait(30)  # all sixteen connections are open at once, or this breaks
        return bytes(answer["Body"].read())

    with ThreadPoolExecutor(16) as pool:
        assert b"".join(pool.map(part, range(16))) == body


def _listeners(pid: int) -> set[str]:
    """The addresses on which a process listens for TCP."""
    connections = psutil.Process(pid).net_connections(kind="tcp")
    return {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}


def test_no_website_reaches_the_emulator(tmp_path: Path) -> None:
    """A form needs no permission to be sent: any page put code into the bucket, which replicas then ran."""
    port = free_port()
    emulator.start(port, tmp_path)
    try:
        url, host = emulator.endpoint(port), f"127.0.0.1:{port}"
        assert _asked(f"{url}/moto-api/", {}) == 200
        for header in ("Origin", "Referer", "Sec-Fetch-Site"):
            assert _asked(f"{url}/moto-api/reset", {header: "https://evil.example"}, "POST") == 403
            assert _asked(f"{url}/bucket/code/evil.zip", {header: "null"}, "PUT") == 403
        assert _asked(f"{url}/", {"Host": f"evil.example:{port}"}) == 403, "a name that its DNS points here"
        assert _asked(f"{url}/", {"Host": host}) == 200
    finally:
        emulator.stop(port, tmp_path)


def test_no_other_user_reaches_the_emulator(tmp_path: Path) -> None:
    """moto takes any credentials: another user of the machine could replace the code that replicas run."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    port = free_port()
    emulator.start(port, tmp_path)
    program = f"import urllib.request as r; r.urlopen('{emulator.endpoint(port)}/', timeout=60)"
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    try:
        done = subprocess.run([*become, "/usr/bin/python3", "-c", program], capture_output=True, text=True, cwd="/")
        assert done.returncode != 0 and "403" in done.stderr, done
    finally:
        emulator.stop(port, tmp_path)


def _asked(url: str, headers: dict[str, str], method: str = "GET") -> int:
    request = urllib.request.Request(url, data=b"x" if method != "GET" else None, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
