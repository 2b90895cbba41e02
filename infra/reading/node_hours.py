"""Reads the replicas' records of node time (`serving/node_hours.py`) for the books."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from modelfleet.infra.planning.books import HOUR_US, Holding, MachineTime
from modelfleet.infra.reading.records import hour_of, micros, records
from modelfleet.serving.config.errors import Finding
from modelfleet.serving.node_hours import NODES

#: A machine counts from its boot if its first Ray began this soon after it: image and weights take minutes, and what
#: ran longer before was not there for this stack.
BOOT_WITHIN_US = HOUR_US


@dataclass(frozen=True)
class NodeHours:
    """The machines and what replicas held of them, cut to the time asked for."""

    machines: tuple[MachineTime, ...]
    holdings: tuple[Holding, ...]


def read_node_hours(folder: Path, since: datetime, faults: list[Finding] | None = None) -> NodeHours:
    """Machines and holdings below a folder of records, from `since` on; a line cut by a kill is left out.

    A machine is where one kernel booted: Ray's nodes (pods) on it, one after the other, are one machine. It ends with
    Ray's note of its last node's end, else with the last line that saw it. A node that no record but a replica's own
    names counts while the replica did. `faults` gets what is said of lines that are no records.
    """
    nodes, replicas = _last(folder, since, [] if faults is None else faults)
    boots = {one["node"]: one["boot"] for one in replicas.values() if one["boot"].get("id") and one["boot"].get("at")}
    machines: dict[str, MachineTime] = {}
    for node in nodes.values():
        at = micros(node["ended"] or node["written"])
        _grow(machines, _machine(node["node"], boots), node["pool"], micros(node["began"]), at)
    holdings = []
    for one in replicas.values():
        began, ended = micros(one["began"]), micros(one["written"])
        for node_id, share in one["shares"].items():
            machine = _machine(node_id, boots)
            pool = nodes[node_id]["pool"] if node_id in nodes else ""
            _grow(machines, machine, pool, began, ended)
            ready = None if one["ready"] is None else micros(one["ready"])
            holdings.append(Holding(one["replica"], one["model"], machine, share, began, ready, ended))
    for boot in boots.values():
        machine_time, booted = machines.get(boot["id"]), micros(boot["at"])
        if machine_time is not None and 0 < machine_time.began - booted <= BOOT_WITHIN_US:
            machines[boot["id"]] = replace(machine_time, began=booted)
    start = round(since.timestamp() * 1_000_000)
    cut = (replace(one, began=max(one.began, start)) for one in machines.values() if one.ended > start)
    return NodeHours(tuple(cut), tuple(holdings))


def _machine(node: str, boots: Mapping[str, Mapping[str, str]]) -> str:
    return boots[node]["id"] if node in boots else node


def _grow(machines: dict[str, MachineTime], machine: str, pool: str, began: int, ended: int) -> None:
    known = machines.get(machine)
    if known is None:
        machines[machine] = MachineTime(machine, pool, began, ended)
    else:
        machines[machine] = replace(
            known, pool=known.pool or pool, began=min(known.began, began), ended=max(known.ended, ended)
        )


def _last(
    folder: Path, since: datetime, faults: list[Finding]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The last record of each node and of each replica, of the hours from `since` on."""
    first_hour = since.strftime("%Y-%m-%dT%H")
    nodes: dict[str, dict[str, Any]] = {}
    replicas: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob(f"{NODES}/date=*/hour=*/*.jsonl")):
        if hour_of(path) < first_hour:
            continue
        for record in records(path, faults):
            if "record" not in record:
                continue
            found, name = (nodes, "node") if record["record"] == "node" else (replicas, "replica")
            before = found.get(record[name])
            if before is None or before["written"] <= record["written"]:
                found[record[name]] = record
    return nodes, replicas
