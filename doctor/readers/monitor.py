"""The stack's own Prometheus and Alertmanager on this machine: whether they run, with their files, and see anything."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import psutil

from modelfleet.doctor.dashboard import Dashboard, Silent
from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.subject import Subject
from modelfleet.infra.local.ports import LOOPBACK, listens, owner
from modelfleet.infra.local.processes import left_behind
from modelfleet.infra.names import mark

#: 0 after a reload that failed (prometheus/prometheus cmd/prometheus/main.go, prometheus/alertmanager
#: config/coordinator.go).
REFUSED: Final = re.compile(r"^(?:prometheus|alertmanager)_config_last_reload_successful 0$", re.MULTILINE)

#: What each of its five calls may take of the reader's seconds: that a program hangs is then a fact that it tells.
SHARE: Final = 0.19


def read(subject: Subject, seconds: float) -> Reading:
    """Facts of the two processes; one that is silent is one."""
    ours = left_behind(mark(str(subject.folder), "monitor"))
    local = subject.stack.config.local
    ports = {"Prometheus": local.prometheus_port, "Alertmanager": local.alertmanager_port}
    found: list[Evidence] = []
    for name, port in ports.items():
        program = Dashboard(f"http://{LOOPBACK}:{port}", name=name)
        process = next((one for one in ours if _has_port(one, port)), None)
        try:
            found += _facts(program, process, SHARE * seconds) if process else [_absent(name, port)]
        except Silent as silent:
            found.append(_fact(name, str(silent)))
    return Reading(Layer.MONITOR, tuple(found))


def _facts(program: Dashboard, process: psutil.Process, seconds: float) -> Iterator[Evidence]:
    program.text("/-/ready", seconds)
    if REFUSED.search(program.text("/metrics", seconds)):
        yield _fact(program.name, f"process {process.pid} could not read its files when it was asked to")
    elif program.name == "Prometheus":
        targets = program.get("/api/v1/targets?state=active", seconds)
        yield from target_facts(targets.get("data", {}).get("activeTargets", []))


def target_facts(targets: Sequence[dict[str, Any]]) -> Iterator[Evidence]:
    """A Prometheus that reads nothing. https://prometheus.io/docs/prometheus/latest/querying/api/#targets

    Before its first scrape the health of a target is unknown, which is no fault.
    """
    if all(one.get("health") == "down" for one in targets):
        why = next((str(one["lastError"]) for one in targets if one.get("lastError")), "there are none")
        yield Evidence(Layer.MONITOR, "targets", "Prometheus", f"none of {len(targets)} targets is up: {why}")


def _absent(name: str, port: int) -> Evidence:
    taken = listens(port)
    return _fact(name, f"port {port} is taken{owner(port)}" if taken else f"nothing listens at port {port}")


def _has_port(process: psutil.Process, port: int) -> bool:
    # A process may end while it is asked.
    with contextlib.suppress(psutil.Error):
        return any(
            one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in process.net_connections("tcp")
        )
    return False


def _fact(name: str, text: str) -> Evidence:
    return Evidence(Layer.MONITOR, "monitor", name, text)
