"""Ray and Serve applications as Pulumi resources: made, kept, changed one by one, mended, taken away.

One stack for the whole file, its tests in order: Ray takes half a minute to start on a busy machine.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator

import pytest

from infra.local.runtime import short_folder
from tests.engine.engine import wait_until
from tests.engine.local_stack import LocalStack, listening_addresses
from tools.pulumi_lock import clear_dead_locks

pytestmark = pytest.mark.slow

TWO = {"first": {"answer": 1}, "second": {"answer": 2}}


@pytest.fixture(scope="module")
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's program that is called like Ray's."""
    command = ["raylet", "-c", "import time; time.sleep(3600)", "ray start --head gcs_server"]
    process = subprocess.Popen(command, executable=sys.executable)
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    made = LocalStack(tmp_path_factory.mktemp("local"))
    yield made
    made.destroy(check=False)
    left = made.living_processes()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"processes outlive their stack: {left}"


def test_a_taken_port_is_named_with_the_setting_that_moves_ours(stack: LocalStack) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", stack.ports["gcs"]))
        other.listen()
        run = stack.up(check=False)
    assert run.code != 0
    assert f"port {stack.ports['gcs']} is taken by process {os.getpid()}" in run.text
    assert "modelfleet:local.gcsPort" in run.text
    assert "Traceback" not in run.text
    assert stack.resources("modelfleet:local:Ray") == []


def test_preview_makes_nothing(stack: LocalStack) -> None:
    stack.applications.update(TWO)
    assert stack.preview().changes["create"] == 3
    assert not stack.living_processes()


def test_up_brings_applications_that_answer(stack: LocalStack, neighbour: subprocess.Popen[bytes]) -> None:
    run = stack.up()
    # The failed run of the first test has left the stack itself in the state.
    assert run.changes.get("create", 0) >= 3
    assert stack.ask("first")["args"] == {"answer": 1}
    assert stack.ask("second")["args"] == {"answer": 2}


def test_ray_listens_on_loopback_only(stack: LocalStack) -> None:
    leader = stack.ray()
    assert leader is not None
    addresses = listening_addresses(leader)
    assert f"127.0.0.1:{stack.ports['serve']}" in addresses
    # Serve's replicas listen everywhere unless the application prevents it; ours does, see test_local_fleet.py.
    ours = {address: title for address, title in addresses.items() if not title.startswith("ray::ServeReplica")}
    assert [address for address in ours if not address.startswith("127.0.0.1:")] == []


def test_no_other_user_reaches_rays_sockets(stack: LocalStack) -> None:
    """Ray makes its own folder writable for everybody."""
    assert stat.S_IMODE(short_folder(str(stack.run_folder), "ray").stat().st_mode) == 0o700


def test_a_second_up_changes_nothing(stack: LocalStack) -> None:
    before = {name: stack.ask(name)["pid"] for name in TWO}
    run = stack.up()
    assert run.changes == {"same": 4}
    assert {name: stack.ask(name)["pid"] for name in TWO} == before


def test_a_changed_application_restarts_alone(stack: LocalStack) -> None:
    before = {name: stack.ask(name)["pid"] for name in TWO}
    stack.applications["first"] = {"answer": 3}
    run = stack.up()
    assert run.changes == {"same": 3, "update": 1}
    assert stack.ask("first") == {"pid": stack.ask("first")["pid"], "args": {"answer": 3}}
    assert stack.ask("first")["pid"] != before["first"]
    assert stack.ask("second")["pid"] == before["second"], "its model file did not change"


def test_a_model_that_cannot_start_says_why_and_is_mended_by_the_next_run(stack: LocalStack) -> None:
    before = stack.ask("second")["pid"]
    stack.applications["first"] = {"refuse": "no weights here"}
    run = stack.up(check=False)
    assert run.code != 0
    assert "first failed to start: RuntimeError: no weights here" in run.text
    assert "Traceback" not in run.text
    stack.applications["first"] = {"answer": 4}
    stack.up()
    assert stack.ask("first")["args"] == {"answer": 4}
    assert stack.ask("second")["pid"] == before, "another model's failure is not its own"


def test_an_application_added_and_taken_away_leaves_the_others(stack: LocalStack) -> None:
    before = {name: stack.ask(name)["pid"] for name in TWO}
    stack.applications["third"] = {"answer": 5}
    assert stack.up().changes == {"same": 4, "create": 1}
    assert stack.ask("third")["args"] == {"answer": 5}
    del stack.applications["third"]
    assert stack.up().changes == {"same": 4, "delete": 1}
    assert {name: stack.ask(name)["pid"] for name in TWO} == before


def test_up_killed_while_a_model_starts_is_taken_up_again(stack: LocalStack) -> None:
    stack.applications["third"] = {"answer": 6, "delay_s": 15}
    running = stack.start("up")
    wait_until(lambda: "third" in _serve_applications(stack), seconds=120, what="the deployment")
    running.kill()
    wait_until(lambda: not _tools_alive(stack), what="the plugin's own end")
    clear_dead_locks(f"file://{stack.state}")  # as `modelfleet up` and this checkout's `pulumi` do
    run = stack.up()
    assert stack.ask("third")["args"]["answer"] == 6
    assert "Traceback" not in run.text
    del stack.applications["third"]
    stack.up()


def test_ray_that_died_is_noticed_and_made_again(stack: LocalStack) -> None:
    old = stack.ray()
    assert old is not None
    os.kill(old.pid, signal.SIGKILL)
    run = stack.up()
    assert run.changes == {"same": 1, "create": 3}
    assert stack.ray() != old
    assert stack.ask("first")["args"] == {"answer": 4}
    assert stack.ask("second")["args"] == {"answer": 2}


def test_destroy_ends_this_ray_and_nothing_else(stack: LocalStack, neighbour: subprocess.Popen[bytes]) -> None:
    run = stack.destroy()
    assert run.changes == {"delete": 4}
    assert stack.living_processes() == []
    assert not short_folder(str(stack.run_folder), "ray").exists()
    assert neighbour.poll() is None, "processes are ended by id, never by name"


def test_up_killed_while_ray_starts_is_mended_by_the_next_run(stack: LocalStack) -> None:
    stack.applications.clear()
    running = stack.start("up")
    wait_until(lambda: short_folder(str(stack.run_folder), "ray").exists(), seconds=120, what="the start of Ray")
    running.kill()
    wait_until(lambda: not _tools_alive(stack), what="the plugin's own end")
    clear_dead_locks(f"file://{stack.state}")  # as `modelfleet up` and this checkout's `pulumi` do
    stack.applications["first"] = {"answer": 7}
    stack.up()
    assert stack.ask("first")["args"] == {"answer": 7}
    leaders = {os.getsid(pid) for pid in stack.living_processes()}
    assert len(leaders) == 1, "the Ray of the killed run has ended"


def test_an_interrupted_up_ends_soon_and_the_next_one_goes_on(stack: LocalStack) -> None:
    stack.applications["second"] = {"answer": 8, "delay_s": 20}
    running = stack.start("up")
    wait_until(lambda: "second" in _serve_applications(stack), seconds=120, what="the deployment")
    run = running.interrupt()
    assert run.code != 0
    assert "Traceback" not in run.text
    stack.up()
    assert stack.ask("second")["args"]["answer"] == 8


def _serve_applications(stack: LocalStack) -> dict[str, object]:
    from infra.local.provider.serve_api import ServeApi, Unreachable

    try:
        api = ServeApi(f"http://127.0.0.1:{stack.ports['dashboard']}", stack.ports["serve"], stack.run_folder / "x")
        return dict(api.details().get("applications", {}))
    except Unreachable:
        return {}


def _tools_alive(stack: LocalStack) -> list[int]:
    """Processes of a killed run other than Ray's: the plugin, the program."""
    ray = stack.ray()
    return [pid for pid in stack.living_processes() if not _is_detached(pid) and (ray is None or pid != ray.pid)]


def _is_detached(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(os.getsid(pid)).environ().get("MODELFLEET_PROCESS") is not None
    except (psutil.Error, ProcessLookupError):
        return False
