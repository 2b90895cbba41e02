"""Grafana dashboards of a stack as JSON: the fleet, each model, and money. Made from the plan; edits are overwritten.

Grafana imports them as files, or by its sidecar from ConfigMaps. The datasource is a variable of each dashboard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from modelfleet.infra.catalog.slo import latency_histograms
from modelfleet.infra.observability.metrics import bound_text, of_backend, of_model, of_stack, selector
from modelfleet.infra.observability.rules import BAD_SHARE, RESPONSES
from modelfleet.infra.planning.plan import ModelPlan, Plan
from modelfleet.infra.planning.slo import Objective

#: Of rate() in panels: four scrapes, whatever the panel's width.
WINDOW: Final = "$__rate_interval"
#: Grafana's grid is 24 wide; two panels beside each other.
WIDTH, HEIGHT = 12, 8
HEALTHY: Final = "ray_serve_deployment_replica_healthy"
TOKENS: Final = "ray_modelfleet_tokens_total"
#: Of Grafana's dashboard model. https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
SCHEMA_VERSION: Final = 39
#: Fields of every line of a panel, in Grafana's words. Parts of a whole lie on each other, for equal lines would hide
#: each other; without an edge, which a part of 0 would draw over its neighbour's.
STACKED: Final = {"custom": {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 50, "lineWidth": 0}}
#: An axis without halves; one whose top is all there is.
WHOLE: Final = {"decimals": 0}
SHARE: Final = {"max": 1}
#: The burn that a budget just bears is drawn in, and in sight where nothing burns.
BUDGET: Final = {
    "custom": {"axisSoftMax": 1.2, "thresholdsStyle": {"mode": "dashed"}},
    "thresholds": {
        "mode": "absolute",
        "steps": [{"color": "transparent", "value": None}, {"color": "red", "value": 1}],
    },
}
DASHED: Final = {"custom.lineStyle": {"fill": "dash", "dash": [8, 8]}}
#: By status class of HAProxy's `code`.
STATUS: Final = {"1xx": "#808080", "2xx": "green", "3xx": "blue", "4xx": "orange", "5xx": "red", "other": "purple"}
#: Objectives in a panel's title.
GOALS: Final = {"ttft": "first token", "tpot": "time per token", "availability": "availability"}


@dataclass(frozen=True)
class Panel:
    """A chart over time: its queries, each with the name of its line (Grafana's `{{label}}` allowed), and its unit.

    `fields` are of every line (`fieldConfig.defaults`), `lines` of one, by its name (`fieldConfig.overrides`).
    """

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    says: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def dashboards(plan: Plan) -> dict[str, dict[str, Any]]:
    """By file name: `fleet.json`, `money.json`, `model-<slug>.json`."""
    made = {"fleet.json": _dashboard(plan, "fleet", f"{plan.stack}: fleet", fleet_panels(plan))}
    made["money.json"] = _dashboard(plan, "money", f"{plan.stack}: money", money_panels(plan))
    for model in plan.models:
        title = f"{plan.stack}: {model.model_id}"
        made[f"model-{model.slug}.json"] = _dashboard(plan, model.slug, title, model_panels(plan, model))
    return made


def fleet_panels(plan: Plan) -> list[Panel]:
    """What is slow, what is full: every model in one picture."""
    stack = of_stack(plan)
    ids = {model.slug: {"displayName": model.model_id} for model in plan.models}

    def by_model(title: str, unit: str, expression: str, **fields: Any) -> Panel:
        return Panel(title, unit, [(expression, "{{application}}")], fields=fields, lines=ids)

    p95 = "histogram_quantile(0.95, sum by (application, le) (rate({}_bucket{}[{}])))"
    found = [
        _answers(stack),
        by_model("Healthy replicas", "short", f"sum by (application) ({HEALTHY}{stack})", **STACKED, **WHOLE),
    ]
    if any(model.kind == "text" for model in plan.models):
        ttft, tpot = (latency_histograms()[name].metric for name in ("ttft", "tpot"))
        found += [
            by_model("First token, 95th percentile", "s", p95.format(ttft, stack, WINDOW)),
            by_model("Time per token, 95th percentile", "s", p95.format(tpot, stack, WINDOW)),
            by_model("Tokens written a second", "short", _rate("ray_vllm_generation_tokens_total", stack), **STACKED),
        ]
    run, wait, kv = (
        f"{how} by (application) (ray_vllm_{name}{stack})"
        for how, name in (
            ("sum", "num_requests_running"),
            ("sum", "num_requests_waiting"),
            ("avg", "kv_cache_usage_perc"),
        )
    )
    return [
        *found,
        by_model("Requests that run", "short", run, **STACKED, **WHOLE),
        by_model("Requests that wait", "short", wait, **STACKED, **WHOLE),
        by_model("KV cache in use", "percentunit", kv, **SHARE),
    ]


def model_panels(plan: Plan, model: ModelPlan) -> list[Panel]:
    """One model: what clients wait for, against what its file promises, and what its engines do."""
    of = of_model(plan, model.slug)
    found = [
        _answers(of_backend(plan, model.slug)),
        Panel(
            "Replicas",
            "short",
            [
                (f"sum({HEALTHY}{of})", "healthy"),
                (f"max(ray_serve_autoscaling_target_replicas{of})", "wanted"),
            ],
            fields=WHOLE,
            lines={"healthy": {"custom.fillOpacity": 25}, "wanted": DASHED},
        ),
    ]
    if model.kind == "text":
        found += [_latency(plan, model, "ttft", "First token"), _latency(plan, model, "tpot", "Time per token")]
    found += [_goal(plan, model, goal) for goal in model.slo]
    hits = "sum(rate(ray_vllm_prefix_cache_hits_total{}[{}])) / sum(rate(ray_vllm_prefix_cache_queries_total{}[{}]))"
    return [
        *found,
        Panel(
            "Requests",
            "short",
            [
                (f"sum(ray_vllm_num_requests_running{of})", "run"),
                (f"sum(ray_vllm_num_requests_waiting{of})", "wait"),
            ],
            fields={**STACKED, **WHOLE},
        ),
        Panel(
            "Tokens a second",
            "short",
            [
                (f"sum(rate(ray_vllm_prompt_tokens_total{of}[{WINDOW}]))", "read"),
                (f"sum(rate(ray_vllm_generation_tokens_total{of}[{WINDOW}]))", "written"),
            ],
        ),
        Panel("KV cache in use", "percentunit", [(f"avg(ray_vllm_kv_cache_usage_perc{of})", "in use")], fields=SHARE),
        Panel(
            "Prompt tokens found in the cache",
            "percentunit",
            [(hits.format(of, WINDOW, of, WINDOW), "hits")],
            fields=SHARE,
        ),
    ]


def money_panels(plan: Plan) -> list[Panel]:
    """Who takes the tokens; and what replicas cost, where the target has prices."""
    # Cached prompts are in `prompt`, and thoughts in `completion` (serving/usage_metrics.py).
    each_once = [of_stack(plan, kind=kind) for kind in ("prompt", "completion")]

    def by(label: str) -> list[tuple[str, str]]:
        parts = " or ".join(f"increase({TOKENS}{chosen}[1h])" for chosen in each_once)
        return [(f"sum by ({label}) ({parts})", f"{{{{{label}}}}}")]

    found = [
        Panel("Tokens in the last hour, by model", "short", by("model"), fields=STACKED),
        Panel("Tokens in the last hour, by key", "short", by("key"), fields=STACKED),
        Panel("Tokens in the last hour, by team", "short", by("team"), fields=STACKED),
    ]
    priced = [(model, usd) for model in plan.models if (usd := usd_per_replica(model))]
    if priced:
        says = (
            "Healthy replicas times what one costs by the plan's prices; idle nodes, network and storage are not in it."
        )
        queries = [(f"sum({HEALTHY}{of_model(plan, one.slug)}) * {usd:g}", one.model_id) for one, usd in priced]
        found.append(Panel("USD an hour for replicas", "currencyUSD", queries, says, STACKED))
        each = [
            (
                f"sum({HEALTHY}{of}) * {usd / 3600:g} / sum(rate(ray_vllm_generation_tokens_total{of}[1h])) * 1e6",
                one.model_id,
            )
            for one, usd in priced
            if one.kind == "text"
            for of in (of_model(plan, one.slug),)
        ]
        found += [Panel("USD per million written tokens, last hour", "currencyUSD", each, says)] if each else []
    return found


def usd_per_replica(model: ModelPlan) -> float | None:
    """USD per hour of one of its most replicas; None where a price is unknown or nothing costs."""
    most = model.cost.max_usd_per_hour
    return most / model.replicas.max if most else None


def _answers(labels: str) -> Panel:
    query = f"sum by (code) (rate({RESPONSES}{labels}[{WINDOW}]))"
    colours = {code: {"color": {"mode": "fixed", "fixedColor": colour}} for code, colour in STATUS.items()}
    return Panel("Answers a second, by status", "reqps", [(query, "{{code}}")], fields=STACKED, lines=colours)


def _rate(name: str, labels: str) -> str:
    return f"sum by (application) (rate({name}{labels}[{WINDOW}]))"


def _latency(plan: Plan, model: ModelPlan, name: str, title: str) -> Panel:
    """Median and 95th percentile, and the file's limit where it has one."""
    metric = latency_histograms()[name].metric
    labels = of_model(plan, model.slug)
    queries = [
        (f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{labels}[{WINDOW}])))", f"p{share * 100:g}")
        for share in (0.5, 0.95)
    ]
    limits = [
        (f"vector({bound_text(one.limit_ms / 1e3)})", "goal") for one in model.slo if one.name == name and one.limit_ms
    ]
    goal = {**DASHED, "color": {"mode": "fixed", "fixedColor": "red"}}
    return Panel(title, "s", [*queries, *limits], lines={"goal": goal} if limits else {})


def _goal(plan: Plan, model: ModelPlan, goal: Objective) -> Panel:
    """How much of the error budget the last windows took: above 1 it would not last."""
    chosen = selector({"stack": plan.stack, "model": model.model_id, "objective": goal.name})
    allowed = round(1 - goal.good_share, 9)
    queries = [(f"{BAD_SHARE}{window}{chosen} / {allowed:g}", window) for window in ("1h", "3d")]
    says = "1: as many bad requests as the goal allows. The rules of the stack record it."
    return Panel(f"Error budget burned: {GOALS[goal.name]}", "short", queries, says, BUDGET, {"3d": DASHED})


def _dashboard(plan: Plan, name: str, title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    chosen = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": _uid(f"modelfleet-{plan.stack}-{name}"),
        "title": title,
        "tags": ["modelfleet", plan.stack],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [chosen]},
        "panels": [_panel(number, panel, last=number + 1 == len(panels)) for number, panel in enumerate(panels)],
    }


def _uid(text: str) -> str:
    """At most 40 characters of a few kinds, and the same for the same text."""
    return sha256(text.encode()).hexdigest()[:40]


def _panel(number: int, panel: Panel, *, last: bool) -> dict[str, Any]:
    """Two in a row; a last one without a neighbour takes its room."""
    alone = last and number % 2 == 0
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.says,
        "datasource": source,
        "gridPos": {"x": number % 2 * WIDTH, "y": number // 2 * HEIGHT, "w": WIDTH * (1 + alone), "h": HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, **panel.fields},
            "overrides": [
                {
                    "matcher": {"id": "byName", "options": line},
                    "properties": [{"id": name, "value": value} for name, value in looks.items()],
                }
                for line, looks in panel.lines.items()
            ],
        },
        "targets": [
            {"refId": f"Q{place + 1}", "datasource": source, "expr": query, "legendFormat": line}
            for place, (query, line) in enumerate(panel.queries)
        ],
    }
