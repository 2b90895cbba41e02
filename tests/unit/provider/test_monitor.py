"""The local stack's own Prometheus and Alertmanager, with the real programs: from a fault to the webhook, and anew."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pulumi
import pytest
import requests

from modelfleet.infra.local import emulator
from modelfleet.infra.local.fleet import LocalFleet
from modelfleet.infra.local.provider import monitor
from modelfleet.infra.planning import Plan
from modelfleet.infra.provider import Call, Props, Refused
from modelfleet.infra.provider.sdk import SECRET_SIGNATURE, SIGNATURE_KEY
from modelfleet.infra.provider.values import plain, wire
from modelfleet.infra.targets import Given, build
from modelfleet.serving.config.errors import SetupError
from tests.ports import free_port
from tests.unit.planning.builders import model, planned, pool, stack
from tests.unit.provider.test_local_cards import Recorded
from tests.waiting import wait_until
from tools.prometheus import alertmanager, prometheus

#: By which a receiver knows who sends.
TOKEN = "t0ken-of-a-test"
#: What the files say, and what a test has time for. Prometheus knows its Alertmanager after 5 s; what it tells nobody
#: before it tells again a minute later.
SOON = {"for: 10m": "for: 7s", "group_wait: 30s": "group_wait: 0s", "interval: 15s": "interval: 1s"}


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes alerts as a webhook does."""

    got: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook's URL, and what it got."""
    got: list[dict[str, Any]] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("One", (Receiver,), {"got": got})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", got
        server.shutdown()


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real programs on PATH, where this machine can have them."""
    try:
        folders = {str(find().parent) for find in (prometheus, alertmanager)}
    except SetupError as error:
        pytest.skip(f"no Prometheus: {error}")
    monkeypatch.setenv("PATH", os.pathsep.join([*folders, os.environ["PATH"]]))


def plan_of(*secrets: str) -> Plan:
    ports = {f"{name}Port": free_port() for name in ("prometheus", "alertmanager", "rayMetrics", "metrics")}
    keys = {"local": ports, "observability": {"metrics": "own"}, "accountId": None, "secrets": secrets}
    return planned([model("org/a", "CPU")], stack(pool("cpu", "CPU"), target="local", region=None, **keys))


def inputs_of(plan: Plan, folder: Path, webhook: str | None = None) -> Props:
    """What the program gives the plugin, and sooner."""
    engine = Recorded()
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(engine, project="modelfleet", stack="test", preview=True)

    @pulumi.runtime.test
    def program() -> None:
        LocalFleet("test", plan, folder=folder, alert_webhook=pulumi.Output.secret(webhook) if webhook else None)

    program()
    given = engine.made["modelfleet:local:Monitor"]
    inputs: Props = plain(wire({key: value for key, value in given.items() if key != "webhook"}))
    if webhook:
        inputs["webhook"] = revealed(given["webhook"])
    for said, soon in SOON.items():
        assert any(said in text for text in inputs["texts"].values()), said
        inputs["texts"] = {name: text.replace(said, soon) for name, text in inputs["texts"].items()}
    return inputs


def revealed(value: Any) -> str:
    """What a secret has, as the engine gets it; fails where it is none."""
    assert value[SIGNATURE_KEY] == SECRET_SIGNATURE
    return str(value["value"])


def text_of(file: Path) -> str:
    return file.read_bytes().decode(errors="replace") if file.is_file() else ""


CALL = Call[Props]({}, "urn", "monitor", monitor.MONITOR.token, 0, print)


@pytest.mark.usefixtures("programs")
def test_an_alert_of_a_ray_that_is_gone_reaches_the_webhook_with_its_runbook(
    tmp_path: Path, receiver: tuple[str, list[dict[str, Any]]]
) -> None:
    url, got = receiver
    inputs = inputs_of(plan_of("alertWebhook"), tmp_path, f"{url}{TOKEN}")
    made = monitor.create(CALL, inputs)
    state = {**inputs, **made.outputs}

    def told() -> dict[str, str]:
        alerts = (one for group in got for one in group["alerts"])
        return {one["labels"]["alertname"]: one["annotations"]["runbook"] for one in alerts}

    try:
        wait_until(lambda: "ModelfleetRayUnseen" in told(), what="the alert at the webhook", seconds=150)
        assert told()["ModelfleetRayUnseen"] == "modelfleet doctor --stack test"
        assert [file.name for file in tmp_path.rglob("*") if TOKEN in text_of(file)] == ["webhook"]
        assert stat.S_IMODE((tmp_path / "monitor" / "webhook").stat().st_mode) == 0o600
        assert TOKEN not in str([one.cmdline() for one in monitor.left_behind(monitor.mark(str(tmp_path), "monitor"))])
        shown = requests.get(f"http://127.0.0.1:{inputs['alertmanagerPort']}/api/v2/status", timeout=30).text
        assert "url_file" in shown and TOKEN not in shown, "every user of this machine may ask it"
        assert monitor.read(CALL, made.id, state) == state
        # Another text starts both anew, and a process that ended is seen.
        first = {state["prometheusPid"], state["alertmanagerPid"]}
        state |= monitor.update(CALL, made.id, state, {**inputs, "retentionDays": 3})
        assert not first & {state["prometheusPid"], state["alertmanagerPid"]}
        flags = requests.get(f"http://127.0.0.1:{inputs['prometheusPort']}/api/v1/status/flags", timeout=30).json()
        assert flags["data"]["storage.tsdb.retention.time"] == "3d"
        assert flags["data"]["storage.tsdb.retention.size"] == "16GiB"
        psutil.Process(state["alertmanagerPid"]).kill()
        wait_until(lambda: monitor.read(CALL, made.id, state) is None, what="the end is seen", seconds=60)
    finally:
        monitor.delete(CALL, made.id, state)
    assert not monitor.left_behind(monitor.mark(str(tmp_path), "monitor"))
    assert not (tmp_path / "monitor").exists()


@pytest.mark.usefixtures("programs")
def test_a_receiver_that_is_gone_leaves_no_url_in_alertmanagers_log_and_a_secret_taken_out_leaves_no_file(
    tmp_path: Path,
) -> None:
    inputs = inputs_of(plan_of("alertWebhook"), tmp_path, f"http://127.0.0.1:{free_port()}/{TOKEN}")
    made = monitor.create(CALL, inputs)
    state = {**inputs, **made.outputs}
    log = tmp_path / "alertmanager.log"
    try:
        wait_until(lambda: "connection refused" in log.read_text(), what="a message that fails", seconds=150)
        assert TOKEN not in log.read_text() and TOKEN not in (tmp_path / "prometheus.log").read_text()
        assert (tmp_path / "monitor" / "webhook").exists()
        without = inputs_of(plan_of(), tmp_path) | {key: inputs[key] for key in monitor.PROGRAMS.values()}
        state = without | monitor.update(CALL, made.id, state, without)
        assert not (tmp_path / "monitor" / "webhook").exists()
    finally:
        monitor.delete(CALL, made.id, state)


def test_the_url_stays_a_secret_on_its_way_to_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the engine encrypts it in the state, and previews show none of it."""
    engine = Recorded()
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(engine, project="modelfleet", stack="test", preview=True)
    monkeypatch.setattr(emulator, "start", lambda *_: None)
    url = f"https://hooks.example.org/{TOKEN}"

    @pulumi.runtime.test
    def program() -> None:
        build(tmp_path, plan_of("alertWebhook"), Given(alert_webhook=url))

    program()
    given = engine.made["modelfleet:local:Monitor"]
    assert revealed(given["webhook"]) == url and TOKEN not in str(given["texts"])


def test_a_program_that_keeps_the_url_to_itself_is_told(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match='alert_webhook=pulumi.Config.*require_secret."alertWebhook"'):
        build(tmp_path, plan_of("alertWebhook"))
    assert not (tmp_path / ".modelfleet").exists(), "nothing was started"


def test_a_url_that_is_none_stops_the_run_without_being_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(Recorded(), project="modelfleet", stack="test", preview=True)
    monkeypatch.setattr(emulator, "start", lambda *_: None)

    @pulumi.runtime.test
    def program() -> None:
        build(tmp_path, plan_of("alertWebhook"), Given(alert_webhook=TOKEN))

    with pytest.raises(pulumi.RunError, match="modelfleet:alertWebhook: is no http") as refused:
        program()
    assert TOKEN not in str(refused.value)


@pytest.mark.usefixtures("programs")
def test_a_file_that_prometheus_refuses_is_its_own_sentence_and_nothing_is_left(tmp_path: Path) -> None:
    inputs = inputs_of(plan_of(), tmp_path)
    inputs["texts"] = {**inputs["texts"], "rules.yaml": "groups: [{name: a, rules: [{alert: A, expr: ')'}]}]"}
    with pytest.raises(Refused, match=r"prometheus does not start: .*prometheus\.log"):
        monitor.create(CALL, inputs)
    mine = monitor.mark(str(tmp_path), "monitor")
    assert not monitor.left_behind(mine)


def test_without_the_programs_the_way_to_them_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        Refused, match="prometheus and alertmanager are not on PATH.*apt install prometheus prometheus-alertmanager"
    ):
        monitor.create(CALL, inputs_of(plan_of(), tmp_path))
