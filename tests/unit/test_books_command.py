"""`modelfleet usage` in USD: the replica's own writer, the reader, the books, and each way of showing them."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from modelfleet.cli.main import app
from modelfleet.cli.usage import _prices, run_usage
from modelfleet.cli.usage_html import MOST_BARS, bars, headline, percent_text, usage_page
from modelfleet.cli.usage_report import Report, report, uses
from modelfleet.infra.planning.books import HOUR_US, Holding, MachineTime
from modelfleet.infra.reading.node_hours import NodeHours as ReadHours
from modelfleet.infra.reading.node_hours import read_node_hours
from modelfleet.infra.reading.records import micros
from modelfleet.infra.reading.usage import read_usage
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.infra.stack import load_stack
from modelfleet.serving import node_hours, usage
from modelfleet.serving.config.errors import InputErrors, SetupError
from modelfleet.serving.node_hours import NodeHours, RayNode
from tests.unit.planning.test_plan_page import FRAME, in_browser
from tests.unit.serving.test_usage import Answer, ask, meter_of

BEGAN = datetime(2026, 11, 30, 10, tzinfo=UTC)
ALL = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """The time of all that writes records."""

    def __init__(self) -> None:
        self.now = BEGAN.timestamp()

    def time(self) -> float:
        return self.now

    def hours(self, hours: float) -> None:
        self.now += 3600 * hours


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()

    class At(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromtimestamp(made.now, tz)

    for module in (usage, node_hours):
        monkeypatch.setattr(module.time, "time", made.time)
    monkeypatch.setattr(usage, "datetime", At)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: made.now)
    monkeypatch.setattr(node_hours, "boot", dict)
    return made


class Ray:
    """What Ray says: two nodes with four GPUs each, of which a replica holds two of one."""

    def __init__(self, here: str = "a") -> None:
        self.asked: set[int] = set()
        self.known = {name: RayNode(name, "gpu", BEGAN.timestamp(), None, 4.0, 16.0) for name in ("a", "b")} | {
            "head": RayNode("head", "headgroup", BEGAN.timestamp(), None, 0.0, 0.0)
        }
        self.node = here

    def nodes(self) -> dict[str, RayNode]:
        return self.known

    def held(self) -> dict[str, dict[str, float]]:
        return {self.node: {"GPU": 2.0, "CPU": 1.0}, "gone": {"GPU": 1.0}}

    def first(self, minute: int) -> bool:
        return minute not in self.asked and not self.asked.add(minute)  # type: ignore[func-returns-value]

    def here(self) -> str:
        return self.node


def life(folder: Path, clock: Clock) -> None:
    """A replica that starts for an hour, is idle for one, answers alice for one and both for one."""
    ray = Ray()
    hours = NodeHours(folder, "org/model", "r", ray)
    hours.note()
    clock.hours(1)
    hours.ready()
    hours.note()
    clock.hours(1)
    answer = Answer(1000, ended=False)
    meter = meter_of(folder / "org--model", answer)
    meter.replica = "r"
    ask(meter, key="alice")
    clock.hours(1)
    other = meter_of(folder / "org--model", late := Answer(500))
    other.replica = "r"
    other._next = 1
    ask(other, key="bob")
    clock.hours(1)
    answer.ended = late.ended = True
    meter.end_what_is_through()
    other.end_what_is_through()
    hours.note()


def test_from_the_replicas_lines_to_the_bill(tmp_path: Path, clock: Clock) -> None:
    life(tmp_path, clock)
    found = report(
        read_usage(tmp_path), read_node_hours(tmp_path, ALL), {"gpu": 4.0}, by="key", stack="prod", since="7d"
    )
    assert [(row["key"], row["completion_tokens"], row["usd"]) for row in found.rows] == [
        ("alice", 1000, 3.0),
        ("bob", 500, 1.0),
    ]
    assert found.unused() == [("cold start", 2.0), ("idle", 2.0), ("free", 8.0 + 16.0)]
    assert found.usd == 32.0, "two nodes, four hours, 4 USD an hour; the head is in no pool"
    (model,) = found.models
    assert (model["usd"], model["tokens"]) == (8.0, 1510)
    assert model["usd_per_million_tokens"] == round(8e6 / 1510, 4)


def test_a_node_that_ends_ends_in_the_books_and_is_written_once(tmp_path: Path, clock: Clock) -> None:
    ray = Ray()
    hours = NodeHours(tmp_path, "m", "r", ray)
    hours.note()
    ray.known["b"] = RayNode("b", "gpu", BEGAN.timestamp(), BEGAN.timestamp() + 1800, 4.0, 16.0)
    for _ in range(3):
        clock.hours(1)
        hours.note()
    read = {one.machine: (one.ended - one.began) / 3.6e9 for one in read_node_hours(tmp_path, ALL).machines}
    assert read == {"a": 3, "b": 0.5}
    text = "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert text.count('"node":"b"') == 2


def test_one_replica_writes_the_nodes_and_each_its_own(tmp_path: Path, clock: Clock) -> None:
    ray = Ray()
    for name in ("r", "s"):
        NodeHours(tmp_path, "m", name, ray).note()
    lines = [json.loads(line) for path in tmp_path.rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(line["record"] for line in lines) == ["holding", "holding", "node", "node"]
    assert {line["shares"]["a"] for line in lines if line["record"] == "holding"} == {0.5}
    assert all("gone" not in line.get("shares", {}) for line in lines)


def test_a_machine_counts_from_its_boot_and_once_for_all_its_pods(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = usage.stamp(BEGAN.timestamp() - 300)
    monkeypatch.setattr(node_hours, "boot", lambda: {"id": "kernel", "at": early})
    NodeHours(tmp_path, "m", "r", Ray("a")).note()
    clock.hours(1)
    NodeHours(tmp_path, "m", "s", Ray("b")).note()  # the pod that followed on the same machine
    (machine,) = read_node_hours(tmp_path, ALL).machines
    assert (machine.machine, machine.pool) == ("kernel", "gpu")
    assert (machine.ended - machine.began) / 1e6 == 3600 + 300
    monkeypatch.setattr(node_hours, "boot", lambda: {"id": "old", "at": usage.stamp(BEGAN.timestamp() - 86400)})
    NodeHours(tmp_path / "x", "m", "r", Ray()).note()
    assert min(one.began for one in read_node_hours(tmp_path / "x", ALL).machines) == micros(
        usage.stamp(BEGAN.timestamp())
    ), "a machine that ran for a day was not there for this stack"


def test_the_books_begin_where_they_are_asked_to(tmp_path: Path, clock: Clock) -> None:
    life(tmp_path, clock)
    since = BEGAN + timedelta(hours=3)
    found = report(
        read_usage(tmp_path), read_node_hours(tmp_path, since), {"gpu": 4.0}, by="key", stack="p", since="1h"
    )
    assert found.usd == 8.0 and [row["usd"] for row in found.rows] == [1.0, 1.0]
    assert found.unused() == [("cold start", 0.0), ("idle", 0.0), ("free", 6.0)]


def test_a_request_over_midnight_is_paid_on_both_days() -> None:
    record = {"replica": "r", "began": "2026-11-30T23:00:00.000000Z", "written": "2026-12-01T02:00:00.000000Z"}
    parts = [(use.name, (use.ended - use.began) / 3.6e9) for use in uses([record], "day")]
    assert parts == [("2026-11-30", 1), ("2026-12-01", 2)]


def test_a_line_that_a_kill_cut_is_left_out(tmp_path: Path, clock: Clock) -> None:
    hours = NodeHours(tmp_path, "m", "r", Ray())
    hours.note()
    (file,) = tmp_path.rglob("*.jsonl")
    file.write_text(file.read_text() + '{"version":1,"record":"holding","rep')
    assert len(read_node_hours(tmp_path, ALL).holdings) == 1
    assert list(read_usage(tmp_path)) == [], "node time is no request"


@pytest.fixture
def project(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A local stack whose replica's life ended a minute ago."""
    clock.now = datetime.now(UTC).timestamp() - 4 * 3600 - 60
    monkeypatch.setitem(globals(), "BEGAN", datetime.fromtimestamp(clock.now, UTC))
    (tmp_path / "stacks").mkdir()
    config = {"modelfleet:target": "local", "modelfleet:models": ["*"]}
    (tmp_path / "stacks" / "Pulumi.local.yaml").write_text(yaml.safe_dump({"config": config}))
    monkeypatch.chdir(tmp_path)
    life(tmp_path / ".modelfleet" / "usage" / "local", clock)
    yield tmp_path


def test_every_way_of_showing_it_adds_up(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_usage("local", prices=["gpu=4"], as_json=True)
    said = json.loads(capsys.readouterr().out)
    unused = sum(line["usd"] for line in said["books"]["lines"] if line["kind"] != "used")
    assert sum(row["usd"] for row in said["rows"]) + unused == said["books"]["usd"] == 32.0
    run_usage("local", prices=["gpu=4"], as_csv=True)
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sum(float(row["usd"]) for row in table) == 32.0
    assert [row["key"] for row in table][-3:] == ["(cold start)", "(idle)", "(free)"]
    run_usage("local", prices=["gpu=4"])
    shown = capsys.readouterr()
    assert "32.00" in shown.out and "pool gpu: 2 machines, 8.00 node hours at 4.0000 USD = 32.00 USD" in shown.err
    run_usage("local", as_json=True)
    assert json.loads(capsys.readouterr().out)["books"]["usd"] == 0.0, "this machine costs nothing per hour"


@pytest.mark.parametrize("price", ["gpu", "gpu=-1", "gpu=x", "=1", "gpu=1e9"])
def test_a_price_that_is_none_is_refused(project: Path, price: str) -> None:
    with pytest.raises(InputErrors, match="allowed is a pool and USD per node hour"):
        run_usage("local", prices=[price])


def test_records_that_cannot_be_read_are_one_message(project: Path) -> None:
    for part in ("-nodes", "org--model"):
        unread = project / "copies" / f"{part}/date=2999-01-01/hour=00/x.jsonl"
        unread.mkdir(parents=True)
        with pytest.raises(SetupError, match=r"x\.jsonl cannot be read: Is a directory"):
            run_usage("local", records=project / "copies")
        unread.rmdir()


def test_two_forms_at_once_are_refused(project: Path) -> None:
    done = CliRunner().invoke(app, ["usage", "--json", "--html", "x.html"])
    assert done.exit_code == 1 and not Path("x.html").exists()


def test_prices_are_the_plans_where_none_is_given() -> None:
    root = Path(__file__).parents[2]
    plan = make_plan(root, "prod", deploying=False)
    first, second = plan.pools[:2]
    hours = ReadHours(tuple(MachineTime(one, one, 0, 1) for one in (first.name, second.name, "gone")), ())
    found = _prices(root, load_stack(root, "prod"), hours, {second.name: 7.0})
    assert first.usd_per_node_hour and found[first.name] == first.usd_per_node_hour
    assert found[second.name] == 7.0 and found.get("gone") is None, "a pool that is no more has no price"


def of_names(*names: str) -> Report:
    """Each name used an hour alone."""
    machine = {"machine": "a", "pool": "gpu"}
    start = micros("2026-11-30T10:00:00.000000Z")
    count = len(names)
    hours = ReadHours(
        (MachineTime(began=start, ended=start + (count + 1) * HOUR_US, **machine),),
        (Holding("r", "org/model", "a", 0.5, start, start, start + (count + 1) * HOUR_US),),
    )
    records = [
        {
            "replica": "r", "key": name, "model": "org/model", "end": "finished", "prompt_tokens": 10, "cached_tokens": 0,
            "completion_tokens": 5, "reasoning_tokens": 0,
            "began": usage.stamp(BEGAN.timestamp() + 3600 * at), "written": usage.stamp(BEGAN.timestamp() + 3600 * (at + 1)),
        }
        for at, name in enumerate(names)
    ]  # fmt: skip
    return report(records, hours, {"gpu": 2.0}, by="key", stack="prod", since="7d")


def test_the_picture_is_the_bill_however_many_there_are() -> None:
    found = of_names(*(f"key-{number}" for number in range(30)))
    drawn = bars(found)
    assert len(drawn) == MOST_BARS + 1 + 3
    assert drawn[MOST_BARS].name == "18 others" and drawn[MOST_BARS].usd == 18.0
    assert sum(bar.usd for bar in drawn) == found.usd == 62.0
    assert sum(bar.part for bar in drawn) == pytest.approx(100)


def test_the_page_says_first_what_it_cost_and_how_much_of_it_was_used() -> None:
    found = of_names("alice", "bob")
    assert headline(found, bars(found)) == "The machines cost 6.00 USD. 2.00 USD of it, 33 %, was used."
    assert headline(found, bars(found)) in usage_page(found)
    assert [percent_text(part) for part in (0.0, 0.2, 0.6, 99.8)] == ["0 %", "< 1 %", "1 %", "100 %"]
    hours = ReadHours((MachineTime("a", "gpu", 0, HOUR_US),), ())
    unknown = report([], hours, {}, by="key", stack="s", since="7d")
    assert headline(unknown, bars(unknown)) == ""


def test_the_page_calls_an_unknown_price_unknown_and_a_known_one_by_all_its_digits() -> None:
    hours = ReadHours(tuple(MachineTime(pool, pool, 0, HOUR_US) for pool in ("gpu", "other")), ())
    page = usage_page(report([], hours, {"gpu": 1.3234}, by="key", stack="s", since="7d"))
    assert ">? USD</span>" in page and "1.3234" in page and "0.00 USD</span>" not in page.split("free")[1]


def test_the_page_needs_no_network_and_runs_nothing(tmp_path: Path) -> None:
    page = usage_page(of_names("<img src=x onerror=alert(1)>", "alice"))
    assert "<img" not in page and "&lt;img" in page
    assert not re.search(r"""(src|href)=["']|url\(|@import|<script""", page)
    assert "No node hours" in usage_page(report([], ReadHours((), ()), {}, by="key", stack="s", since="7d"))


@pytest.mark.slow
def test_in_chromium_the_bars_are_as_long_as_they_cost(tmp_path: Path) -> None:
    """On a phone: nothing sticks out, and each bar has its part of the longest."""
    found = of_names("alice", "x" * 63)
    frame = tmp_path / "frame.html"
    asks = FRAME.replace(
        "Math.round(filled(bar) - box(bar).width)", "Math.round(1000 * box(bar).width / box(bar.parentElement).width)"
    )
    frame.write_text(asks.format(page=html.escape(usage_page(found)), width=375))
    dumped = in_browser(["--window-size=1500,2500", "--virtual-time-budget=2000", "--dump-dom", frame.as_uri()])
    title = re.search(r"<title>\[(\d+),(\d+),\"rgb[^\"]+\",(\[[^]]*\])\]</title>", html.unescape(dumped))
    assert title, dumped[-500:]
    assert (int(title[1]) <= 375, int(title[2])) == (True, 0)
    lengths = [int(one) / 10 for one in title[3].strip("[]").split(",")]
    assert lengths == pytest.approx([bar.width or 0.0 for bar in bars(found)], abs=3)
