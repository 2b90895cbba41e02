"""Where a Prometheus finds a stack's metrics: Ray's of every node (with Serve's and vLLM's), and the gateway's."""

from __future__ import annotations

from typing import Any, Final

from modelfleet.infra.planning.gateway_paths import KEY_METRICS, METRICS
from modelfleet.infra.planning.plan import Plan

#: Which pods of a stack have metrics, by a label of theirs, and at which of their ports and paths. KubeRay sets the
#: label of Ray's pods (ray-operator/controllers/ray/common/pod.go, labelPod).
PODS: Final = {
    "ray": ("ray.io/is-ray-node", "yes", (("metrics", "/metrics"),)),
    "gateway": (
        "app.kubernetes.io/name",
        "gateway",
        (("metrics", METRICS), ("metrics", KEY_METRICS), ("bodies-metrics", METRICS)),
    ),
}
#: What the alerts of alerts.yaml ask of kube-state-metrics; a test holds the two together.
STATES: Final = (
    "kube_job_status_active",
    "kube_job_status_failed",
    "kube_job_status_start_time",
    "kube_job_status_succeeded",
    "kube_node_spec_taint",
    "kube_node_status_allocatable",
)
#: Seconds between scrapes: replicas copy vLLM's metrics every 5 s (serving/metrics.py).
INTERVAL_S: Final = 15


def scrape_configs(plan: Plan) -> list[dict[str, Any]]:
    """`scrape_configs` of a Prometheus on this machine; none for a cluster, where PodMonitors say it."""
    if not plan.target.on_this_machine:
        return []
    ports = plan.config.local
    return [
        _job("ray", "/metrics", ports.ray_metrics_port),
        _job("gateway", METRICS, ports.metrics_port),
        _job("gateway-keys", KEY_METRICS, ports.metrics_port),
    ]


def pod_scrape_configs(namespace: str, states: str | None = None) -> list[dict[str, Any]]:
    """`scrape_configs` of a Prometheus in the cluster, with the labels that an operator's PodMonitors give.

    `states` is where kube-state-metrics is, host:port.
    """
    return [*_all_pods(namespace), *([_states(states)] if states else [])]


def _states(address: str) -> dict[str, Any]:
    """Only what alerts ask for: it has series of each object of the whole cluster, and their own labels."""
    kept = {"source_labels": ["__name__"], "regex": "|".join(STATES), "action": "keep"}
    return {
        "job_name": "kube-state-metrics",
        "honor_labels": True,
        "static_configs": [{"targets": [address]}],
        "metric_relabel_configs": [kept],
    }


def _all_pods(namespace: str) -> list[dict[str, Any]]:
    return [
        _pods(f"{name}-{number}", namespace, f"{label}={value}", port, path)
        for name, (label, value, ends) in PODS.items()
        for number, (port, path) in enumerate(ends)
    ]


def _pods(name: str, namespace: str, label: str, port: str, path: str) -> dict[str, Any]:
    found = "__meta_kubernetes_pod_container_port_name"
    kept = {"namespace": "__meta_kubernetes_namespace", "pod": "__meta_kubernetes_pod_name"}
    return {
        "job_name": name,
        "metrics_path": path,
        "kubernetes_sd_configs": [
            {"role": "pod", "namespaces": {"names": [namespace]}, "selectors": [{"role": "pod", "label": label}]}
        ],
        "relabel_configs": [
            {"source_labels": [found], "regex": port, "action": "keep"},
            *({"source_labels": [of], "target_label": to} for to, of in kept.items()),
        ],
    }


def _job(name: str, path: str, port: int) -> dict[str, Any]:
    return {
        "job_name": name,
        "scrape_interval": f"{INTERVAL_S}s",
        "metrics_path": path,
        "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
    }
