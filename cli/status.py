"""What runs of a local stack: one row per model, from Ray Serve itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from infra.local.provider.serve_api import ServeApi, Unreachable
from infra.planning import Plan
from serving.config.errors import SetupError

TIMEOUT_S = 15.0


def rows(plan: Plan) -> list[dict[str, Any]]:
    """Model, route, status, replicas that run and are wanted at most; `status` is Serve's word or NOT_RUNNING."""
    if plan.target != "local":
        raise SetupError(f"stack {plan.stack} has target {plan.target}; ask its cluster: kubectl get rayservice")
    local = plan.config.local
    try:
        api = ServeApi(f"http://127.0.0.1:{local.dashboard_port}", local.serve_port, Path())
        applications = api.details(TIMEOUT_S).get("applications", {})
    except Unreachable:
        applications = {}
    return [
        {
            "model": model.model_id,
            "route": f"/{model.slug}/v1",
            "status": applications.get(model.slug, {}).get("status", "NOT_RUNNING"),
            "replicas": _running(applications.get(model.slug, {})),
            "max_replicas": model.replicas.max,
        }
        for model in plan.models
    ]


def status_table(stack: str, found: list[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    table = Table(title=f"Stack {stack}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("model", "route", "status", "replicas"):
        table.add_column(name, justify="right" if name == "replicas" else "left", overflow="fold")
    for row in found:
        table.add_row(row["model"], row["route"], row["status"], f"{row['replicas']}/{row['max_replicas']}")
    return table


def _running(application: dict[str, Any]) -> int:
    deployments = application.get("deployments", {}).values()
    return sum(r.get("state") == "RUNNING" for deployment in deployments for r in deployment.get("replicas", []))
