"""A fleet that the last release made and serves is upgraded to the version at hand, under load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.local.processes import ProcessId
from tests.engine.own_fleet import (
    RELEASED,
    ROOT,
    SLUG,
    Fleet,
    build_wheel,
    install,
    own_fleet,
    sources_with,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Upgraded:
    """A fleet after its upgrade, with what `upgrade` showed and what ran before."""

    fleet: Fleet
    shown: dict[str, Any]
    replicas: list[int]
    ray: ProcessId
    codes: list[int]


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    wheel = build_wheel(ROOT, tmp_path_factory.mktemp("dist"))
    with own_fleet(tmp_path_factory.mktemp("own") / "fleet", RELEASED) as fleet:
        fleet.modelfleet("up")
        replicas, ray = fleet.replicas(SLUG), fleet.ray()
        shown = json.loads(fleet.plain("upgrade", str(wheel), "--json").stdout)
        install(fleet.folder)
        with fleet.load() as load:
            fleet.modelfleet("up")
        yield Upgraded(fleet, shown, replicas, ray, load.codes)


def test_a_fleet_of_the_last_release_keeps_serving_and_restarts_only_what_upgrade_named(upgraded: Upgraded) -> None:
    shown, fleet = upgraded.shown, upgraded.fleet
    assert (shown["from"], shown["to"]) == (RELEASED.name.split("-")[1], version("modelfleet"))
    (restarted,) = (one["restarted"] for one in shown["stacks"] if one["stack"] == "test")
    assert restarted in ([], [SLUG])
    assert (fleet.replicas(SLUG) == upgraded.replicas) is (not restarted), fleet.serve_log()
    assert fleet.ray() == upgraded.ray, "no upgrade of ours alone restarts Ray"
    # The one replica of its model ends before the next one starts.
    assert set(upgraded.codes) <= ({200, 503} if restarted else {200}) and len(upgraded.codes) > 3
    assert "RUNNING" in fleet.modelfleet("status", "--json").stdout


@pytest.mark.long(why="a second upgrade of the same fleet")
def test_an_upgrade_shows_what_changes_and_restarts_no_replica_whose_code_stays(
    upgraded: Upgraded, tmp_path: Path
) -> None:
    fleet = upgraded.fleet
    source = sources_with(tmp_path / "source", "9.9.9")
    prices = source / "infra" / "catalog" / "prices.csv"
    cheaper = prices.read_text().replace("us-east-1,g6.xlarge,0.8048", "us-east-1,g6.xlarge,0.7048")
    assert cheaper != prices.read_text(), "the row that this test changes is gone"
    prices.write_text(cheaper)
    newer = build_wheel(source, tmp_path / "dist")
    before = (fleet.folder / "requirements.txt").read_text()

    shown = json.loads(fleet.plain("upgrade", str(newer), "--dry-run", "--json").stdout)
    assert (shown["from"], shown["to"], shown["files"]) == (version("modelfleet"), "9.9.9", [])
    changed = {one["stack"]: one for one in shown["stacks"]}
    assert changed["test"]["plan"] == [] and changed["test"]["restarted"] == []
    assert {"where": "pools[l4].usd_per_node_hour", "before": 0.8048, "after": 0.7048} in changed["trial"]["plan"]
    assert not changed["trial"]["rebuilt"]
    assert (fleet.folder / "requirements.txt").read_text() == before, "a dry run writes nothing"

    fleet.install(newer)
    replicas = fleet.replicas(SLUG)
    with fleet.load() as load:
        fleet.modelfleet("up")
    assert fleet.replicas(SLUG) == replicas, fleet.serve_log()
    assert set(load.codes) == {200} and len(load.codes) > 3
