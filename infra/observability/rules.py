"""Prometheus rules of a stack: a model's goals as recorded shares and burn-rate alerts, and alerts of any stack.

The second kind are rows of alerts.yaml. Each alert's `runbook` is a command that says the cause.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from modelfleet.infra.catalog.slo import BurnRate
from modelfleet.infra.observability.metrics import bound_text, of_backend, of_model, of_stack, quoted, selector
from modelfleet.infra.planning.plan import ModelPlan, Plan
from modelfleet.infra.planning.slo import Objective

ALERTS: Final = Path(__file__).parent / "alerts.yaml"
#: The share of bad requests over a window, by `stack`, `model` and `objective`.
BAD_SHARE: Final = "modelfleet:slo_bad:ratio_rate"
RESPONSES: Final = "haproxy_backend_http_responses_total"
#: Names of mirror Jobs, as infra/kubernetes/manifests/mirror.py gives them, which a test holds together.
MIRROR_JOBS: Final = "mirror-.+"
#: A copy that takes less is never late, in seconds.
LEAST_LATE_S: Final = 3600
#: By objective: the alert's name, and what of a model is bad.
SAID: Final = {
    "ttft": ("ModelfleetSlowFirstToken", "begin to be answered only after {limit:g} ms"),
    "tpot": ("ModelfleetSlowTokens", "get their tokens more slowly than one in {limit:g} ms"),
    "availability": ("ModelfleetUnavailable", "are answered with a 5xx status"),
}


def rule_groups(plan: Plan) -> dict[str, Any]:
    """A file of Prometheus rules: `{"groups": […]}`, one group per model, the stack's own last."""
    alerts = [_filled(plan, None, row) for row in _rows("stack") if _has(plan, row)]
    return {
        "groups": [*(_group(plan, one) for one in plan.models), {"name": f"modelfleet.{plan.stack}", "rules": alerts}]
    }


def _group(plan: Plan, model: ModelPlan) -> dict[str, Any]:
    rules: list[dict[str, Any]] = []
    for goal in model.slo:
        labels = _labels(plan, model, goal)
        rules += [
            {"record": f"{BAD_SHARE}{window}", "expr": bad_share(plan, model, goal, window), "labels": labels}
            for window in goal.windows
        ]
        rules += [_burns(plan, model, goal, burn) for burn in goal.burns]
    rules += [_filled(plan, model, row) for row in _rows("model") if _applies(model, row)]
    return {"name": f"modelfleet.{plan.stack}.{model.slug}", "rules": rules}


def _labels(plan: Plan, model: ModelPlan, goal: Objective) -> dict[str, str]:
    return {"stack": plan.stack, "model": model.model_id, "objective": goal.name}


def bad_share(plan: Plan, model: ModelPlan, goal: Objective, window: str) -> str:
    """PromQL: the share of bad requests over a window; NaN without requests, which fires nothing."""
    if goal.name == "availability":
        bad = f"sum(rate({RESPONSES}{of_backend(plan, model.slug, code='5xx')}[{window}]))"
        return f"{bad}\n/\nsum(rate({RESPONSES}{of_backend(plan, model.slug)}[{window}]))"

    def rate(suffix: str, **labels: str) -> str:
        return f"sum(rate({goal.metric}_{suffix}{of_model(plan, model.slug, **labels)}[{window}]))"

    parts = [
        f"{rate('bucket', le=bound_text(bound))}{'' if weight == 1 else f' * {weight:g}'}"
        for bound, weight in goal.bounds
    ]
    # rate() extrapolates each series by itself: in the first minutes it may count more good requests than all.
    return f"clamp_min(1 - (\n  {' + '.join(parts)}\n)\n/\n{rate('count')}, 0)"


def _burns(plan: Plan, model: ModelPlan, goal: Objective, burn: BurnRate) -> dict[str, Any]:
    """Fires while both windows burn the budget at the rate."""
    share, chosen = goal.bad_share(burn), selector(_labels(plan, model, goal))
    name, said = SAID[goal.name]
    return {
        "alert": name,
        "expr": f"{BAD_SHARE}{burn.long}{chosen} > {share:g}\nand\n{BAD_SHARE}{burn.short}{chosen} > {share:g}",
        "labels": {**_labels(plan, model, goal), "severity": burn.severity, "window": burn.long},
        "annotations": {
            "summary": f"{model.model_id}: too many requests {said.format(limit=goal.limit_ms or 0)}",
            "description": f"{{{{ $value | humanizePercentage }}}} of them in {burn.long}, and the goal allows "
            f"{(1 - goal.good_share) * 100:.4g} %: a budget of 30 days lasts {30 / burn.factor:.2g} at most.",
            "runbook": runbook(plan, model),
        },
    }


def runbook(plan: Plan, model: ModelPlan | None) -> str:
    """The command that says the first cause."""
    return " ".join(["modelfleet doctor", *([model.model_id] if model else []), f"--stack {plan.stack}"])


@cache
def _file() -> dict[str, list[dict[str, Any]]]:
    read: dict[str, list[dict[str, Any]]] = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    return read


def _rows(of: str) -> list[dict[str, Any]]:
    return _file()[of]


def _applies(model: ModelPlan, row: dict[str, Any]) -> bool:
    """A model that may sleep has no replica by right."""
    return not (row.get("awake") and model.replicas.min == 0)


def _has(plan: Plan, row: dict[str, Any]) -> bool:
    """What the row is about is there."""
    cluster = not plan.target.on_this_machine
    return {
        "every": True,
        "cluster": cluster,
        "gpu": cluster and any(pool.node.gpus for pool in plan.pools),
        "host": plan.front_door is not None and plan.front_door.tls and plan.front_door.hostname is not None,
    }[row.get("only", "every")]


def _places(plan: Plan, model: ModelPlan | None) -> dict[str, str]:
    """What words in braces become: selectors of series, and what else a row knows from the plan."""
    mirrors = f'{{namespace={quoted(plan.mirror_namespace)},job_name=~"{MIRROR_JOBS}"}}'
    late_s = max(LEAST_LATE_S, 3 * (plan.copies.seconds or 0))
    host = (plan.front_door.hostname if plan.front_door else None) or ""
    return {
        "STACK": of_stack(plan),
        **({"MODEL": of_model(plan, model.slug)} if model else {}),
        "MIRRORS": mirrors,
        "MIRROR_LATE_S": str(late_s),
        "NAMESPACE": plan.namespace,
        "HOST": re.escape(host).replace("\\", "\\\\"),
    }


def _filled(plan: Plan, model: ModelPlan | None, row: dict[str, Any]) -> dict[str, Any]:
    """A row with the selectors and names of its stack and model."""
    expr, subject = str(row["expr"]).strip(), model.model_id if model else f"stack {plan.stack}"
    for place, text in _places(plan, model).items():
        expr = expr.replace(f"{{{place}}}", text)
    return {
        "alert": row["alert"],
        "expr": expr,
        "for": row["for"],
        "labels": {
            "stack": plan.stack,
            **({"model": model.model_id} if model else {}),
            "severity": row["severity"],
        },
        "annotations": {
            "summary": f"{subject}: {row['summary']}",
            "runbook": runbook(plan, model),
            **({"needs": row["from"]} if "from" in row else {}),
        },
    }
