"""Processes by id: which the local plugin ends, and which it must never end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from modelfleet.infra.local.ports import require_free
from modelfleet.infra.local.processes import ProcessId, end_all, left_behind, members, spawn
from modelfleet.infra.local.provider.progress import Progress
from modelfleet.infra.local.provider.replica_log import doing
from modelfleet.infra.names import MARK, mark
from modelfleet.serving.config.errors import SetupError
from tests.waiting import wait_until

SLEEP = "import time; time.sleep(600)"
#: A parent with one child. Both ignore SIGTERM; the child has its parent's environment.
STUBBORN = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"])
time.sleep(600)
"""


def _spawn(tmp_path: Path, code: str) -> ProcessId:
    value = mark(str(tmp_path), "test")
    return spawn([sys.executable, "-c", code], mark=value, log=tmp_path / "log", cwd=tmp_path, env=dict(os.environ))


def test_a_session_ends_whole_also_when_its_processes_ignore_a_polite_request(tmp_path: Path) -> None:
    leader = _spawn(tmp_path, STUBBORN)
    wait_until(lambda: len(members(leader)) == 2, seconds=30, what="the child")
    pids = [process.pid for process in members(leader)]
    assert end_all(lambda: members(leader), grace_s=0.2) == 2
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def test_children_whose_leader_was_killed_are_still_found(tmp_path: Path) -> None:
    leader = _spawn(tmp_path, STUBBORN)
    wait_until(lambda: len(members(leader)) == 2, seconds=30, what="the child")
    os.kill(leader.pid, 9)
    os.waitpid(leader.pid, 0)
    (orphan,) = members(leader)
    assert [process.pid for process in left_behind(mark(str(tmp_path), "test"))] == [orphan.pid]
    end_all(lambda: members(leader), grace_s=0.2)


def test_a_process_id_that_another_program_has_by_now_is_left_alone(tmp_path: Path) -> None:
    other = _spawn(tmp_path, SLEEP)
    remembered = ProcessId(other.pid, other.started - 3600)
    assert remembered.find() is None
    assert members(remembered) == []
    assert end_all(lambda: members(remembered), grace_s=0.2) == 0
    assert other.find() is not None
    end_all(lambda: members(other), grace_s=0.2)


def test_a_marked_process_in_somebody_elses_session_does_not_end_that_session(tmp_path: Path) -> None:
    """A user's shell must survive even if one of its children has our mark."""
    value = mark(str(tmp_path), "test")
    environment = f"{{**os.environ, '{MARK}': '{value}'}}"
    code = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', '{SLEEP}'], env={environment})"
    shell = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        wait_until(
            lambda: [c for c in psutil.Process(shell.pid).children() if c.environ().get(MARK) == value],
            what="the child with the mark",
            retry=psutil.Error,
        )
        assert left_behind(value) == []
    finally:
        os.killpg(shell.pid, 9)
        shell.wait()


def test_another_stacks_mark_is_another() -> None:
    assert mark("/a/.modelfleet/local/one", "ray") != mark("/a/.modelfleet/local/two", "ray")
    assert mark("/a/.modelfleet/local/one", "ray") != mark("/b/.modelfleet/local/one", "ray")


def test_every_taken_port_is_named_with_its_holder_and_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = {"servePort": first.getsockname()[1], "gcsPort": second.getsockname()[1]}
        with pytest.raises(SetupError) as refused:
            require_free(ports)
    for key, port in ports.items():
        assert f"port {port} is taken by process {os.getpid()}" in str(refused.value)
        assert f"modelfleet:local.{key}" in str(refused.value)


def test_a_port_of_a_passing_connection_counts_as_free_once_that_has_ended() -> None:
    with socket.socket() as passing:
        passing.bind(("127.0.0.1", 0))
        threading.Timer(0.3, passing.close).start()
        require_free({"servePort": passing.getsockname()[1]})


def test_work_that_says_nothing_is_heard_of_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelfleet.infra.local.provider.progress.SAY_EVERY_S", 0.2)
    monkeypatch.setattr("modelfleet.infra.local.provider.progress.POLL_S", 0.05)
    said: list[str] = []
    progress = Progress(said.append)

    def work() -> str:
        progress.say("uploading")
        wait_until(lambda: len(said) >= 3, what="three signs of life")
        return "done"

    assert progress.during(work) == "done"
    assert all(line.startswith("uploading (") for line in said)


def test_an_error_of_the_work_reaches_the_caller() -> None:
    def work() -> None:
        raise TimeoutError("of the work itself")

    with pytest.raises(TimeoutError, match="of the work itself"):
        Progress(lambda line: None).during(work)


def test_a_starting_replica_tells_vllms_last_line(tmp_path: Path) -> None:
    replica = {"state": "STARTING", "worker_id": "abc", "pid": 7}
    details = {"status": "DEPLOYING", "message": "", "deployments": {"vllm": {"message": "", "replicas": [replica]}}}
    assert doing(details, tmp_path) == "starting the replica: loading Python modules"
    (tmp_path / "worker-abc-01000000-7.out").write_text(
        ":job_id:01000000\n(EngineCore pid=9) INFO 11-24 10:39:38 [core.py:133] Loading weights\nnoise\n"
    )
    assert doing(details, tmp_path) == "starting the replica: Loading weights"
