"""`modelfleet status`: what runs of a local stack, one row per model, according to Ray Serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from modelfleet.cli import output
from modelfleet.infra.local.provider.serve_api import NotOurs, ServeApi, Unreachable
from modelfleet.infra.names import local_folder
from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.serving.config.errors import SetupError

TIMEOUT_S = 15.0


def run_status(stack: str, *, as_json: bool = False) -> int:
    """Print what runs; returns the exit code."""
    root = Path.cwd()
    plan = make_plan(root, stack)
    found = rows(plan)
    if as_json:
        output.show_json({"stack": stack, "base_url": base_url(plan), "models": found})
    else:
        output.show(status_table(plan.stack, found))
        running = sum(row["status"] == "RUNNING" for row in found)
        output.say(f"{running} of {len(found)} models answer at {base_url(plan)}")
    return 0


def base_url(plan: Plan) -> str:
    """Where a local stack's gateway listens."""
    return f"http://127.0.0.1:{plan.config.local.gateway_port}"


def rows(plan: Plan) -> list[dict[str, Any]]:
    """Model, route, status, running replicas and max_replicas; `status` is Serve's word or NOT_RUNNING."""
    if not plan.target.on_this_machine:
        raise SetupError(f"stack {plan.stack} has target {plan.target}; for its status run `kubectl get rayservice -A`")
    local = plan.config.local
    try:
        folder = local_folder(Path.cwd(), plan.stack)
        api = ServeApi(f"http://127.0.0.1:{local.dashboard_port}", local.serve_port, folder)
        applications = api.details(TIMEOUT_S).get("applications", {})
    except NotOurs as error:
        output.say(str(error))  # or "not running" would be all that is said of a port that another program has
        applications = {}
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
