"""`modelfleet observability`: what a Prometheus and a Grafana of your own watch a stack by, as files.

    modelfleet observability --stack local --out watch

writes `watch/rules.yaml`, `watch/dashboards/*.json` and, for target local, `watch/prometheus.yml`, which loads the
rules and scrapes the stack. It needs no running stack.
"""

from __future__ import annotations

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from modelfleet.cli import output
from modelfleet.infra.observability import dashboards, rule_groups, scrape_configs
from modelfleet.infra.observability.own import as_yaml
from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.serving.config.errors import Finding, InputErrors

RULES_FILE = "rules.yaml"


def run_observability(stack: str, *, out: Path, as_json: bool = False) -> int:
    """Write the files to `out`; returns the exit code. Raises `InputErrors` for a folder with files or no folder."""
    plan = make_plan(Path.cwd(), stack, deploying=False)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputErrors([Finding(str(out), 0, "--out", "is not an empty folder; give a new one, or empty it first")])
    written = files(plan)
    try:
        for name, text in written.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputErrors([Finding(str(out), 0, "--out", f"cannot be written: {error.strerror or error}")]) from None
    if as_json:
        output.show_json({"stack": stack, "files": [str(out / name) for name in written], "alerts": _alerts(plan)})
    else:
        output.show(_table(plan))
    following = f"prometheus --config.file={out / 'prometheus.yml'}" if scrape_configs(plan) else "load rules.yaml"
    output.say(f"{stack}: {output.counted(len(written), 'file')} in {out}. Next: {following}")
    return 0


def files(plan: Plan) -> dict[str, str]:
    """Each file's name and text."""
    made = {RULES_FILE: as_yaml(rule_groups(plan))}
    if scraped := scrape_configs(plan):
        made["prometheus.yml"] = as_yaml({"rule_files": [RULES_FILE], "scrape_configs": scraped})
    for name, dashboard in dashboards(plan).items():
        made[f"dashboards/{name}"] = json.dumps(dashboard, indent=2) + "\n"
    return made


def _alerts(plan: Plan) -> list[dict[str, str]]:
    """Every alert: name, model, window, severity, an exporter that is not the stack's, and what says the cause."""
    return [
        {
            "alert": rule["alert"],
            **{key: rule["labels"].get(key, "") for key in ("model", "window", "severity")},
            "needs": rule["annotations"].get("needs", ""),
            "runbook": rule["annotations"]["runbook"],
        }
        for group in rule_groups(plan)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]


def _table(plan: Plan) -> Table:
    table = Table(title=f"Alerts of stack {plan.stack}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    rows = _alerts(plan)
    for column in ("alert", "model", "window", "severity", "needs", "runbook"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    return table
