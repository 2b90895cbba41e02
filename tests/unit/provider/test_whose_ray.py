"""Another program at the port of a stack's Ray, and what a user's own Ray leaves in the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray._private import ray_constants

from modelfleet.infra.local.ports import require_free
from modelfleet.infra.local.processes import ProcessId
from modelfleet.infra.local.provider import application, last_start, ray
from modelfleet.infra.local.provider.serve_api import NotOurs, ServeApi, Unreachable
from modelfleet.infra.local.token import environment, make_token
from modelfleet.infra.provider import Call, Refused
from modelfleet.infra.stack.schema import Local
from modelfleet.serving.config.errors import SetupError
from tests.unit.listener import Listener, listening

#: A child that answers like Serve on a Ray that nobody protects, and prints its port.
OTHER = """
import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "20"); self.end_headers()
        self.wfile.write(b'{"applications": {}}')
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), H)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stack whose last start was this process's child that has ended."""
    make_token(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    last_start.write_last_start(tmp_path, ProcessId.of(ended.pid))
    ended.communicate(b"\n", timeout=30)
    return tmp_path


@pytest.fixture
def stranger() -> Iterator[Listener]:
    with listening({"applications": {}}) as other:
        yield other


def test_an_application_is_never_put_to_another_ray(folder: Path, stranger: Listener) -> None:
    """A PUT replaces all that a Ray serves."""
    with pytest.raises(NotOurs, match=r"port \d+ is taken by process \d+ .*modelfleet:local.dashboardPort"):
        ServeApi(stranger.url(), 8000, folder).put({"name": "org--a"})
    assert stranger.seen == [], "it was asked, and got the token"


def test_the_error_of_an_application_names_who_has_the_port(folder: Path, stranger: Listener) -> None:
    props = {"folder": str(folder), "dashboardPort": stranger.server.server_port, "servePort": 8000, "ray": "ray-1-1"}
    call = Call({}, "urn", "a", "modelfleet:local:Application", 0, print)
    with pytest.raises(Refused, match=f"taken by process {os.getpid()} "):
        application.create(call, {**props, "config": '{"name": "org--a"}'})
    assert stranger.seen == []


def test_a_ray_that_lost_its_port_is_started_again_at_once(folder: Path, stranger: Listener) -> None:
    """`create` then says who has the port; the dashboard is given a minute only where nobody else answers."""
    me = ProcessId(os.getpid(), psutil.Process().create_time())
    state = {"pid": me.pid, "started": me.started, "folder": str(folder)}
    notes: list[str] = []
    call = Call({}, "urn", "ray", "modelfleet:local:Ray", 0, notes.append)
    assert ray.read(call, "ray", {**state, "dashboardPort": stranger.server.server_port, "servePort": 1}) is None
    assert "not by this stack's Ray" in notes[-1], notes


def test_a_stack_that_started_no_ray_asks_nobody(tmp_path: Path, stranger: Listener) -> None:
    with pytest.raises(Unreachable, match="has started no Ray"):
        ServeApi(stranger.url(), 8000, tmp_path).details()
    assert stranger.seen == []


def test_the_stacks_own_ray_is_asked(tmp_path: Path) -> None:
    own = subprocess.Popen([sys.executable, "-c", OTHER], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert own.stdout is not None
        port = int(own.stdout.readline())
        last_start.write_last_start(tmp_path, ProcessId.of(own.pid))
        assert ServeApi(f"http://127.0.0.1:{port}", 8000, tmp_path).details() == {"applications": {}}
    finally:
        own.kill()
        own.communicate(timeout=30)


def test_a_users_own_cluster_keeps_rays_default_ports_and_the_one_that_both_want_is_named() -> None:
    """Ours has a control store and an agent elsewhere; the dashboard's port is Ray's own, which people know."""
    ports = Local().model_dump(by_alias=True, exclude_none=True)
    options = dict(
        one.removeprefix("--").split("=", 1)
        for one in ray._command({**ports, "cpus": 1, "gpus": 0, "resources": {}}, Path("/nowhere"))
        if "=" in one
    )
    theirs = {ray_constants.DEFAULT_PORT, ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT}
    assert not theirs & {int(value) for name, value in options.items() if name.endswith("port")}, options
    assert int(options["dashboard-port"]) == ray_constants.DEFAULT_DASHBOARD_PORT
    with listening({}) as other, pytest.raises(SetupError, match="modelfleet:local.dashboardPort: port .* is taken by"):
        require_free({"dashboardPort": other.server.server_port})


MODE = """
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available as on
from ray._raylet import AuthenticationTokenLoader as Loader
print(on(), Loader.instance().get_raw_token())
"""


@pytest.mark.parametrize("theirs", [{}, {"RAY_AUTH_MODE": "nonsense"}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_users_own_ray_token_and_settings_do_not_reach_the_stacks_ray(
    theirs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray 2.60 takes the token in `~/.ray` by itself where its mode is unset."""
    home, run = tmp_path / "home", tmp_path / "run"
    (home / ".ray").mkdir(parents=True)
    run.mkdir()
    (home / ".ray" / "auth_token").write_text("f" * 64)
    own = {"RAY_AUTH_TOKEN": "e" * 64, "RAY_ADDRESS": "10.0.0.1:6379", "RAY_TMPDIR": "/nonsense", "HOME": str(home)}
    for name, value in {**own, **theirs}.items():
        monkeypatch.setenv(name, value)
    make_token(run)
    env = ray.ray_environment(environment(run))
    assert not {"RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_TOKEN"} & env.keys()
    done = subprocess.run([sys.executable, "-P", "-c", MODE], env=env, capture_output=True, text=True, timeout=120)
    assert (run / "ray.token").read_text() in done.stdout, (done.stdout, done.stderr[-500:])
    assert done.stdout.startswith("True")
