"""Ray and Serve applications as Pulumi resources: made, kept, changed one by one, repaired, removed.

One stack for the whole file, because Ray takes half a minute to start on a busy machine. `empty` and `running` bring it
to where a test begins, whatever the test before left. In the order of the file they have the least to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest

from modelfleet.cli.pulumi_lock import clear_dead_locks
from modelfleet.infra.local.ports import is_free
from modelfleet.infra.local.provider.ray import LOOPBACK_ONLY
from modelfleet.infra.local.runtime import short_folder
from modelfleet.infra.local.token import environment, headers, token_file
from modelfleet.infra.observability.own import local_files
from modelfleet.serving.config.errors import SetupError
from tests.doctor_faults import Fault, healthy, ids, prove
from tests.engine.local_faults import QUICK, SLOW, Live, live_of, misspelt, other_dashboard_port, without_keys
from tests.engine.local_stack import LocalStack, listening_addresses
from tests.ports import free_port
from tests.unit.planning.builders import model, planned, pool
from tests.unit.planning.builders import stack as stack_file
from tests.waiting import wait_until
from tools.prometheus import alertmanager, prometheus

pytestmark = pytest.mark.slow

TWO = ("first", "second")
#: What an application returns that must not be the one before.
numbers = count(1)


@pytest.fixture(scope="module")
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """Someone else's program with the name of Ray's."""
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


@pytest.fixture
def empty(stack: LocalStack) -> LocalStack:
    """The stack with nothing made."""
    stack.applications.clear()
    if stack.resources():
        stack.destroy()
    return stack


@pytest.fixture
def running(stack: LocalStack) -> LocalStack:
    """The stack with Ray and two applications that run, with whatever arguments."""
    wanted = {name: args for name, args in stack.applications.items() if name in TWO and "refuse" not in args}
    wanted = {name: wanted.get(name) or {"answer": next(numbers)} for name in TWO}
    if stack.settled != wanted:
        stack.applications.clear()
        stack.applications.update(wanted)
        clear_dead_locks(f"file://{stack.state}")
        stack.up()
    return stack


def test_a_taken_port_is_named_with_the_setting_that_moves_ours(empty: LocalStack) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", empty.ports["gcs"]))
        other.listen()
        run = empty.up(check=False)
    assert run.code != 0
    assert f"port {empty.ports['gcs']} is taken by process {os.getpid()}" in run.text
    assert "modelfleet:local.gcsPort" in run.text
    assert "Traceback" not in run.text
    assert empty.resources("modelfleet:local:Ray") == []


def test_preview_makes_nothing(empty: LocalStack) -> None:
    empty.applications.update({name: {"answer": next(numbers)} for name in TWO})
    steps = empty.preview().steps()
    assert {operation for operation, _ in steps} == {"create"}
    assert {name for _, name in steps} >= {"ray", *TWO}
    assert not empty.living_processes()


@pytest.mark.usefixtures("neighbour")
def test_up_brings_applications_that_answer(empty: LocalStack) -> None:
    empty.applications.update({"first": {"answer": "a"}, "second": {"answer": "b"}})
    run = empty.up()
    # A failed or destroyed run before has left the stack itself in the state.
    assert run.changes.get("create", 0) >= 3
    assert empty.ask("first")["args"] == {"answer": "a"}
    assert empty.ask("second")["args"] == {"answer": "b"}


@pytest.mark.long(why="half a minute; tests/unit/provider/test_monitor.py runs the same programs without Ray")
def test_a_prometheus_of_the_stacks_own_scrapes_its_ray_and_goes_when_nobody_wants_it(
    running: LocalStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        folders = [str(find().parent) for find in (prometheus, alertmanager)]
    except SetupError as error:
        pytest.skip(f"no Prometheus: {error}")
    monkeypatch.setitem(running.environ, "PATH", os.pathsep.join([*folders, running.environ["PATH"]]))
    ports = {"prometheusPort": free_port(), "alertmanagerPort": free_port()}
    local = {**ports, "rayMetricsPort": running.ports["metrics"]}
    keys = {"local": local, "observability": {"metrics": "own"}, "accountId": None, "secrets": ("alertWebhook",)}
    plan = planned([model("org/a", "CPU")], stack_file(pool("cpu", "CPU"), target="local", region=None, **keys))
    assert plan.own_monitoring is not None
    texts = local_files(plan, plan.own_monitoring)
    running.config["monitor"] = {**ports, "texts": texts, "retentionDays": 1, "keepMib": 100}
    running.set_secret("webhook", "http://127.0.0.1:9/t0ken-of-a-test")

    def value() -> object:
        query = urllib.parse.urlencode({"query": 'ray_serve_application_status{application="first"}'})
        url = f"http://127.0.0.1:{ports['prometheusPort']}/api/v1/query?{query}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found = json.loads(answer.read())["data"]["result"]
        return found and found[0]["value"][1]

    try:
        first = running.up()
        wait_until(lambda: value() == "6", what="Prometheus has what Ray says of an application", seconds=240)
        again = running.preview()
        assert again.changes.keys() == {"same"}
        assert (running.run_folder / "monitor" / "webhook").read_text() == "http://127.0.0.1:9/t0ken-of-a-test"
        (monitor,) = running.resources("modelfleet:local:Monitor")
        assert {"ciphertext"} < {*monitor["inputs"]["webhook"]} and "ciphertext" in monitor["outputs"]["webhook"]
        assert "t0ken-of-a-test" not in running.everything_on_disk() + first.text + again.text
    finally:
        running.config["monitor"] = {}
        running.up()
    assert running.resources("modelfleet:local:Monitor") == []
    assert all(is_free(port) for port in ports.values())


def test_ray_listens_on_loopback_only(running: LocalStack) -> None:
    leader = running.ray()
    assert leader is not None
    addresses = listening_addresses(leader)
    assert f"127.0.0.1:{running.ports['serve']}" in addresses
    # Serve's replicas listen everywhere unless the application prevents it; ours does, see test_local_fleet.py.
    ours = {address: title for address, title in addresses.items() if not title.startswith("ray::ServeReplica")}
    assert [address for address in ours if not address.startswith("127.0.0.1:")] == []


def test_ray_answers_nobody_without_the_token(running: LocalStack) -> None:
    """Any user of the machine submitted a job, which is code that runs as the stack's owner."""
    job = {"entrypoint": "id", "submission_id": "not-mine"}
    dashboard = f"http://127.0.0.1:{running.ports['dashboard']}"
    held = headers(running.run_folder)
    assert held, "there is no token"
    wrong = {"Authorization": "Bearer 0000"}
    assert _status(f"{dashboard}/api/jobs/", job) == 401
    assert _status(f"{dashboard}/api/jobs/", job, wrong) == 403
    assert _status(f"{dashboard}/api/serve/applications/") == 401
    assert _status(f"{dashboard}/nodes?view=summary") == 401
    assert _status(f"{dashboard}/api/serve/applications/", sent=held) == 200
    nobody = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | LOOPBACK_ONLY
    address = f"127.0.0.1:{running.ports['gcs']}"
    refused = _ray("status", "--address", address, env={**nobody, "RAY_AUTH_MODE": "disabled"})
    assert refused.returncode != 0 and "Unauthenticated" in refused.stdout + refused.stderr, refused
    owner = {**nobody, **environment(running.run_folder)}
    # The autoscaler's first report comes one of its intervals after the start.
    wait_until(
        lambda: "Active" in _ray("status", "--address", address, env=owner).stdout, what="an answer to the owner"
    )


def test_another_user_of_the_machine_gets_nothing_from_serve(running: LocalStack) -> None:
    """Serve's port has no keys and no limits, and a loopback port is open to every user."""
    url = f"http://127.0.0.1:{running.ports['serve']}/first"
    assert running.ask("first")["pid"], "its own user is served"
    ask = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=60).status)"
    spoof = (
        f"import urllib.request as r; q = r.Request({url!r}, headers={{'x-forwarded-for': '127.0.0.1'}}); "
        "print(r.urlopen(q, timeout=60).status)"
    )
    for program in (ask, spoof):
        done = as_nobody(program)
        assert done.returncode != 0 and "403" in done.stderr, done


def as_nobody(program: str) -> subprocess.CompletedProcess[str]:
    """A Python program that another user runs."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd="/")


def test_no_other_user_reads_the_token(running: LocalStack) -> None:
    file = token_file(running.run_folder)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    leader = running.ray()
    assert leader is not None
    secret, process = file.read_text(), leader.find()
    assert process is not None
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            assert secret not in " ".join(one.cmdline()), "everybody may list the arguments of processes"


def _status(url: str, body: object = None, sent: Mapping[str, str] = MappingProxyType({})) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **sent})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _ray(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ray")), *arguments]
    return subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False, timeout=300)


def test_no_other_user_reaches_rays_sockets(running: LocalStack) -> None:
    """Ray makes its own folder writable for everyone."""
    assert stat.S_IMODE(short_folder(str(running.run_folder), "ray").stat().st_mode) == 0o700


def test_a_second_up_changes_nothing(running: LocalStack) -> None:
    before = {name: running.ask(name)["pid"] for name in TWO}
    run = running.up()
    assert run.changes == {"same": 4}
    assert {name: running.ask(name)["pid"] for name in TWO} == before


def test_a_changed_application_restarts_alone(running: LocalStack) -> None:
    before = {name: running.ask(name)["pid"] for name in TWO}
    args = running.applications["first"] = {"answer": next(numbers)}
    run = running.up()
    assert run.changes == {"same": 3, "update": 1}
    assert running.ask("first")["args"] == args
    assert running.ask("first")["pid"] != before["first"]
    assert running.ask("second")["pid"] == before["second"], "its model file did not change"


def test_a_model_that_cannot_start_says_why_and_is_mended_by_the_next_run(running: LocalStack) -> None:
    before = running.ask("second")["pid"]
    running.applications["first"] = {"refuse": "no weights here"}
    run = running.up(check=False)
    assert run.code != 0
    assert "first failed to start: RuntimeError: no weights here" in run.text
    assert "Traceback" not in run.text
    args = running.applications["first"] = {"answer": next(numbers)}
    running.up()
    assert running.ask("first")["args"] == args
    assert running.ask("second")["pid"] == before, "another model's failure is not its own"


def test_an_application_added_and_taken_away_leaves_the_others(running: LocalStack) -> None:
    before = {name: running.ask(name)["pid"] for name in TWO}
    args = running.applications["third"] = {"answer": next(numbers)}
    assert running.up().changes == {"same": 4, "create": 1}
    assert running.ask("third")["args"] == args
    del running.applications["third"]
    assert running.up().changes == {"same": 4, "delete": 1}
    assert {name: running.ask(name)["pid"] for name in TWO} == before


def test_up_killed_while_a_model_starts_is_taken_up_again(running: LocalStack) -> None:
    args = running.applications["third"] = {"answer": next(numbers), "delay_s": 15}
    up = running.start("up")
    wait_until(lambda: "third" in _serve_applications(running), seconds=120, what="the deployment")
    up.kill()
    wait_until(lambda: not _tools_alive(running), what="the plugin's own end")
    clear_dead_locks(f"file://{running.state}")  # as `modelfleet up` and this checkout's `pulumi` do
    run = running.up()
    assert running.ask("third")["args"] == args
    assert "Traceback" not in run.text


def test_ray_that_died_is_noticed_and_made_again(running: LocalStack) -> None:
    old = running.ray()
    assert old is not None
    running.settled = None
    os.kill(old.pid, signal.SIGKILL)
    run = running.up()
    assert run.changes == {"same": 1, "create": 3}
    assert running.ray() != old
    for name in TWO:
        assert running.ask(name)["args"] == running.applications[name]


def test_destroy_ends_this_ray_and_nothing_else(running: LocalStack, neighbour: subprocess.Popen[bytes]) -> None:
    run = running.destroy()
    assert run.changes == {"delete": 4}
    assert running.living_processes() == []
    assert not short_folder(str(running.run_folder), "ray").exists()
    assert neighbour.poll() is None, "processes are ended by id, never by name"


def test_up_killed_while_ray_starts_is_mended_by_the_next_run(empty: LocalStack) -> None:
    up = empty.start("up")
    wait_until(lambda: short_folder(str(empty.run_folder), "ray").exists(), seconds=120, what="the start of Ray")
    up.kill()
    wait_until(lambda: not _tools_alive(empty), what="the plugin's own end")
    clear_dead_locks(f"file://{empty.state}")  # as `modelfleet up` and this checkout's `pulumi` do
    args = empty.applications["first"] = {"answer": next(numbers)}
    empty.up()
    assert empty.ask("first")["args"] == args
    leaders = {os.getsid(pid) for pid in empty.living_processes()}
    assert len(leaders) == 1, "the Ray of the killed run has ended"


def test_an_interrupted_up_ends_soon_and_the_next_one_goes_on(running: LocalStack) -> None:
    args = running.applications["second"] = {"answer": next(numbers), "delay_s": 20}
    up = running.start("up")
    wait_until(lambda: _serve_args(running, "second") == args, seconds=120, what="the deployment")
    run = up.interrupt()
    assert run.code != 0
    assert "Traceback" not in run.text
    running.up()
    assert running.ask("second")["args"] == args


def _serve_args(stack: LocalStack, name: str) -> object:
    """What Serve was last asked to run under this name."""
    return _serve_applications(stack).get(name, {}).get("deployed_app_config", {}).get("args")


def _serve_applications(stack: LocalStack) -> dict[str, dict[str, Any]]:
    from modelfleet.infra.local.provider.serve_api import ServeApi, Unreachable

    try:
        api = ServeApi(f"http://127.0.0.1:{stack.ports['dashboard']}", stack.ports["serve"], stack.run_folder)
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


@pytest.fixture(scope="module")
def live(stack: LocalStack) -> Iterator[Live]:
    """The stack as one of two models in files, with a gateway, and its doctor."""
    with live_of(stack) as made:
        yield made


def test_a_stack_that_serves_has_nothing_to_fix(live: Live) -> None:
    answer = healthy(live.doctor)
    print(f"a look takes {answer.seconds:.1f} s")
    assert answer.unread == {}


def test_without_rays_dashboard_the_other_layers_still_speak(live: Live) -> None:
    with other_dashboard_port(live, answers=False), misspelt(live), without_keys(live):
        answer = live.doctor()
    said = {one["rule"] for cause in answer.data["causes"] for one in (cause, *cause["explains"])}
    assert answer.rules[0] == "file-at-fault"
    assert said >= {"ray-not-running", "gateway-without-keys"}
    assert {*answer.unread} == {"serve"}


@pytest.mark.parametrize("fault", QUICK, ids=ids(QUICK))
def test_its_first_cause_is(fault: Fault, live: Live) -> None:
    prove(fault, live, live.doctor)


@pytest.mark.long(why="a replica, a run or Ray starts for each of these faults: two minutes")
@pytest.mark.parametrize("fault", SLOW, ids=ids(SLOW))
def test_its_first_cause_is_after_a_start(fault: Fault, live: Live) -> None:
    prove(fault, live, live.doctor)
