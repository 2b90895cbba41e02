"""What Amazon Managed Service for Prometheus takes: configuration of its scraper, and of its alert manager.

https://docs.aws.amazon.com/prometheus/latest/userguide/AMP-collector-how-to.html#AMP-collector-configuration
https://docs.aws.amazon.com/prometheus/latest/userguide/AMP-alertmanager-config.html
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Final

from modelfleet.infra.observability.dashboards import dashboards
from modelfleet.infra.observability.own import as_yaml, routed
from modelfleet.infra.observability.rules import rule_groups
from modelfleet.infra.observability.scrape import STATES, pod_scrape_configs
from modelfleet.infra.planning.monitoring import AMP_INTERVAL_S, STATES_NAMESPACE, STATES_PORT
from modelfleet.infra.planning.plan import Plan

_SERIES: Final = re.compile(r"([a-zA-Z_][\w:]*)\{")


def scraper_config(plan: Plan) -> str:
    """The scraper's YAML: the pods that a Prometheus in the cluster would find, and of them what somebody asks for.

    AWS bills each sample, and Ray alone exports hundreds of series a node that no rule and no panel names.
    """
    asked = asked_series(plan)
    pods = [{**job, "metric_relabel_configs": [_keep(asked)]} for job in pod_scrape_configs(plan.namespace)]
    return as_yaml({"global": {"scrape_interval": f"{AMP_INTERVAL_S}s"}, "scrape_configs": [*pods, _states()]})


def _keep(names: Collection[str]) -> dict[str, Any]:
    return {"source_labels": ["__name__"], "regex": "|".join(sorted(names)), "action": "keep"}


def _states() -> dict[str, Any]:
    """kube-state-metrics by its pods: the scraper stands outside the cluster, whose names of Services it cannot ask."""
    label = f"app.kubernetes.io/name={STATES_NAMESPACE}"
    port = "__meta_kubernetes_pod_container_port_number"
    return {
        "job_name": "kube-state-metrics",
        "honor_labels": True,
        "kubernetes_sd_configs": [
            {
                "role": "pod",
                "namespaces": {"names": [STATES_NAMESPACE]},
                "selectors": [{"role": "pod", "label": label}],
            }
        ],
        "relabel_configs": [{"source_labels": [port], "regex": str(STATES_PORT), "action": "keep"}],
        "metric_relabel_configs": [_keep(STATES)],
    }


def asked_series(plan: Plan) -> frozenset[str]:
    """The names of series that the rules and the dashboards' panels ask for, but for those that rules record."""
    names = {name for text in _expressions(plan) for name in _SERIES.findall(text)}
    return frozenset(name for name in names if ":" not in name)


def _expressions(plan: Plan) -> Iterator[str]:
    for group in rule_groups(plan)["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for dashboard in dashboards(plan).values():
        yield from (target["expr"] for panel in dashboard["panels"] for target in panel["targets"])


def rules_file(plan: Plan) -> str:
    """All rules of the stack as one namespace of rule groups has them."""
    return as_yaml(rule_groups(plan))


def alert_manager_definition(plan: Plan, topic_arn: str) -> str:
    """The definition: every alert to one topic of SNS, the only receiver in the stack's account.

    AWS wants Alertmanager's configuration as text below a key of its own.
    """
    topic = {
        "topic_arn": topic_arn,
        "sigv4": {"region": plan.region},
        "subject": f"modelfleet stack {plan.stack}",
        "send_resolved": True,
    }
    return as_yaml({"alertmanager_config": as_yaml(routed({"sns_configs": [topic]}))})
