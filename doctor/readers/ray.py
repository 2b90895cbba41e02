"""Ray itself: whether its dashboard answers, its nodes, and what its autoscaler says it lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from modelfleet.doctor.dashboard import Dashboard, Silent
from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.subject import Subject

#: What each of its two calls may take of the reader's seconds: that a dashboard hangs is then a fact that it tells.
SHARE = 0.45
#: How Ray words the end of a node that was meant to end (`ray.dashboard.utils.compose_state_message`, Ray 2.60).
MEANT = ("Expected termination", "Terminated due to idle")


def read(subject: Subject, dashboard: Dashboard, seconds: float) -> Reading:
    """Dead nodes, pending demands and errors; a silent dashboard on this machine is a fact, for nothing else runs."""
    try:
        nodes = dashboard.get("/nodes?view=summary", SHARE * seconds)
        status = dashboard.get("/api/cluster_status", SHARE * seconds)
    except Silent as error:
        if subject.stack.config.target.on_this_machine:
            silent = Evidence(Layer.RAY, "dashboard", "Ray on this machine", str(error))
            return Reading(Layer.RAY, (silent,))
        return Reading(Layer.RAY, unread=str(error))
    return Reading(Layer.RAY, (*node_facts(nodes), *status_facts(status)))


def node_facts(answer: Mapping[str, Any]) -> Iterator[Evidence]:
    """A fact per node that Ray lost (`NodeHead.get_all_nodes`, Ray 2.60); the list keeps dead ones for long."""
    for node in answer.get("data", {}).get("summary", []):
        raylet = node.get("raylet", {})
        why = raylet.get("stateMessage") or "no reason given"
        if raylet.get("state") == "DEAD" and not why.startswith(MEANT):
            name = f"Ray node {raylet.get('nodeManagerAddress', '?')}"
            yield Evidence(Layer.RAY, "raynode", name, f"DEAD: {why}")


def status_facts(answer: Mapping[str, Any]) -> Iterator[Evidence]:
    """The autoscaler's error, its failures and demands that no node can take (`ReporterHead.get_cluster_status`)."""
    data = answer.get("data", {})
    if data.get("autoscalingError"):
        yield Evidence(Layer.RAY, "autoscaler", "Ray's autoscaler", str(data["autoscalingError"]))
    metrics = (data.get("clusterStatus") or {}).get("loadMetricsReport", {})
    for shape, count in metrics.get("resourceDemand", []):
        yield Evidence(Layer.RAY, "demand", "Ray's scheduler", f"{json.dumps(shape, sort_keys=True)}: {count}+ pending")
    for group, count in metrics.get("pgDemand", []):
        text = f"{json.dumps(group, sort_keys=True)}: {count}+ pending placement groups"
        yield Evidence(Layer.RAY, "demand", "Ray's scheduler", text)
