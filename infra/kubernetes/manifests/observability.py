"""What a Prometheus Operator and a Grafana that the cluster has watch the stack by.

Field names: prometheus-operator 0.93.0, example/prometheus-operator-crd.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.names import digest, dns_name, labels
from modelfleet.infra.observability import dashboards, rule_groups
from modelfleet.infra.observability.scrape import INTERVAL_S, PODS
from modelfleet.infra.planning.plan import MonitoringPlan, Plan

MONITORING_API: Final = "monitoring.coreos.com/v1"


def observability(plan: Plan) -> list[Manifest]:
    """PodMonitors of Ray and the gateway, the rules, and a ConfigMap per dashboard; nothing where nobody watches."""
    wanted = plan.monitoring
    if wanted is None:
        return []
    return [
        *(
            _pod_monitor(plan, wanted, name, {"matchLabels": {label: value}}, ends)
            for name, (label, value, ends) in PODS.items()
        ),
        *_rules(plan, wanted),
        *dashboard_maps(plan, wanted.dashboard_labels),
    ]


def _pod_monitor(
    plan: Plan, wanted: MonitoringPlan, name: str, pods: Manifest, ends: Iterable[tuple[str, str]]
) -> Manifest:
    """Every pod of the selector in the stack's namespace, at each named port and path."""
    spec = {
        "selector": pods,
        "namespaceSelector": {"matchNames": [plan.namespace]},
        "podMetricsEndpoints": [{"port": port, "path": path, "interval": f"{INTERVAL_S}s"} for port, path in ends],
    }
    return _object(plan, MONITORING_API, "PodMonitor", name, wanted.labels, spec=spec)


def _rules(plan: Plan, wanted: MonitoringPlan) -> list[Manifest]:
    """One object per group: the operator refuses one above 512 KiB (pkg/operator/rules.go, `MaxConfigMapDataSize`)."""
    return [
        _object(
            plan,
            MONITORING_API,
            "PrometheusRule",
            f"rules-{dns_name(group['name'])}-{digest(group['name'], 6)}",
            wanted.labels,
            spec={"groups": [group]},
        )
        for group in rule_groups(plan)["groups"]
    ]


def dashboard_maps(plan: Plan, found_by: Mapping[str, str]) -> list[Manifest]:
    """One ConfigMap each, with the labels by which Grafana's sidecar finds them; without any, none.

    All together might be more than the 1 MiB that a ConfigMap holds.
    """
    if not found_by:
        return []
    return [
        _object(
            plan,
            "v1",
            "ConfigMap",
            f"dashboard-{dns_name(file.removesuffix('.json'))}-{digest(file, 6)}",
            found_by,
            data={f"{plan.namespace}-{file}": json.dumps(dashboard, indent=1) + "\n"},
        )
        for file, dashboard in dashboards(plan).items()
    ]


def _object(plan: Plan, version: str, kind: str, name: str, more: Any, **content: Any) -> Manifest:
    metadata = {"name": name, "namespace": plan.namespace, "labels": {**labels(plan, name), **more}}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}
