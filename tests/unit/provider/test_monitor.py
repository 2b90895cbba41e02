"""The local stack's own Prometheus and Alertmanager, with the real programs: from a fault to the webhook, and anew."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pulumi
import pytest
import requests

from modelfleet.infra.local.fleet import LocalFleet
from modelfleet.infra.local.provider import monitor
from modelfleet.infra.planning import Plan
from modelfleet.infra.provider import Call, Props, Refused
from modelfleet.infra.provider.values import plain, wire
from modelfleet.serving.config.errors import SetupError
from tests.ports import free_port
from tests.unit.planning.builders import model, planned, pool, stack
from tests.unit.provider.test_local_cards import Recorded
from tests.waiting import wait_until
from tools.prometheus import alertmanager, prometheus

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


def plan_of(webhook: str | None = None) -> Plan:
    ports = {f"{name}Port": free_port() for name in ("prometheus", "alertmanager", "rayMetrics", "metrics")}
    watch = {"metrics": "own", **({"webhook": webhook} if webhook else {})}
    keys = {"local": ports, "observability": watch, "accountId": None}
    return planned([model("org/a", "CPU")], stack(pool("cpu", "CPU"), target="local", region=None, **keys))


def inputs_of(plan: Plan, folder: Path) -> Props:
    """What the program gives the plugin, and sooner."""
    engine = Recorded()
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(engine, project="modelfleet", stack="test", preview=True)

    @pulumi.runtime.test
    def program() -> None:
        LocalFleet("test", plan, folder=folder)

    program()
    inputs: Props = plain(wire(engine.made["modelfleet:local:Monitor"]))
    for said, soon in SOON.items():
        assert any(said in text for text in inputs["texts"].values()), said
        inputs["texts"] = {name: text.replace(said, soon) for name, text in inputs["texts"].items()}
    return inputs


CALL = Call[Props]({}, "urn", "monitor", monitor.MONITOR.token, 0, print)


@pytest.mark.usefixtures("programs")
def test_an_alert_of_a_ray_that_is_gone_reaches_the_webhook_with_its_runbook(
    tmp_path: Path, receiver: tuple[str, list[dict[str, Any]]]
) -> None:
    url, got = receiver
    inputs = inputs_of(plan_of(url), tmp_path)
    made = monitor.create(CALL, inputs)
    state = {**inputs, **made.outputs}

    def told() -> dict[str, str]:
        alerts = (one for group in got for one in group["alerts"])
        return {one["labels"]["alertname"]: one["annotations"]["runbook"] for one in alerts}

    try:
        wait_until(lambda: "ModelfleetRayUnseen" in told(), what="the alert at the webhook", seconds=150)
        assert told()["ModelfleetRayUnseen"] == "modelfleet doctor --stack test"
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
def test_a_file_that_prometheus_refuses_is_its_own_sentence_and_nothing_is_left(tmp_path: Path) -> None:
    inputs = inputs_of(plan_of(), tmp_path)
    inputs["texts"] = {**inputs["texts"], "rules.yaml": "groups: [{name: a, rules: [{alert: A, expr: ')'}]}]"}
    with pytest.raises(Refused, match=r"prometheus does not start: .*prometheus\.log"):
        monitor.create(CALL, inputs)
    mine = monitor.mark(str(tmp_path), "monitor")
    assert not monitor.left_behind(mine)


def test_without_the_programs_the_way_to_them_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="prometheus and alertmanager are not on PATH.*apt install prometheus prometheus-alertmanager"):
        monitor.create(CALL, inputs_of(plan_of(), tmp_path))
