"""Where a Prometheus finds a stack's metrics: Ray's of every node (with Serve's and vLLM's), and the gateway's."""

from __future__ import annotations

from typing import Any, Final

from modelfleet.infra.planning.gateway_paths import KEY_METRICS, METRICS
from modelfleet.infra.planning.plan import Plan

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


def _job(name: str, path: str, port: int) -> dict[str, Any]:
    return {
        "job_name": name,
        "scrape_interval": f"{INTERVAL_S}s",
        "metrics_path": path,
        "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
    }
