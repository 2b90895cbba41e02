"""Configuration of a Prometheus and an Alertmanager that a stack runs itself.

https://prometheus.io/docs/prometheus/latest/configuration/configuration/
https://prometheus.io/docs/alerting/latest/configuration/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from modelfleet.infra.observability.rules import rule_groups
from modelfleet.infra.observability.scrape import INTERVAL_S, scrape_configs
from modelfleet.infra.planning.plan import OwnMonitoringPlan, Plan

#: A receiver is told of a page again while it lasts, and of a ticket once a day.
REPEAT: Final = {"page": "1h", "ticket": "24h"}

#: The file with the webhook's URL, beside Alertmanager's own on this machine.
WEBHOOK_FILE: Final = "webhook"


def prometheus_config(scraped: Sequence[Any], rules: Sequence[str], alertmanager: str) -> dict[str, Any]:
    """`scraped` are scrape configurations, `rules` patterns of rule files, `alertmanager` is host:port."""
    return {
        "global": {"scrape_interval": f"{INTERVAL_S}s", "evaluation_interval": f"{INTERVAL_S}s"},
        "rule_files": list(rules),
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": list(scraped),
    }


def alertmanager_config(url_file: str | None) -> dict[str, Any]:
    """All alerts to the webhook whose URL is in a file; without it they are only shown."""
    return routed({"webhook_configs": [{"url_file": url_file, "send_resolved": True}]} if url_file else {})


def routed(sends: Mapping[str, Any]) -> dict[str, Any]:
    """All alerts to one receiver, together by what they are about; `sends` is how it is told."""
    receiver = {"name": "everybody", **sends}
    together = ["stack", "model", "alertname"]
    routes = [{"matchers": [f'severity="{one}"'], "repeat_interval": again} for one, again in REPEAT.items()]
    return {
        "route": {"receiver": receiver["name"], "group_by": together, "group_wait": "30s", "routes": routes},
        "receivers": [receiver],
        # Of two burn rates of a goal the page says it all.
        "inhibit_rules": [
            {
                "source_matchers": ['severity="page"'],
                "target_matchers": ['severity="ticket"'],
                "equal": [*together, "objective"],
            }
        ],
    }


def local_files(plan: Plan, own: OwnMonitoringPlan) -> dict[str, str]:
    """The files of both on this machine, by name; both run in the folder that has them."""
    alertmanager = f"127.0.0.1:{plan.config.local.alertmanager_port}"
    return {
        "prometheus.yml": as_yaml(prometheus_config(scrape_configs(plan), ["rules.yaml"], alertmanager)),
        "alertmanager.yml": as_yaml(alertmanager_config(WEBHOOK_FILE if own.sends else None)),
        "rules.yaml": as_yaml(rule_groups(plan)),
    }


def as_yaml(value: Any) -> str:
    """A file's text, in the order of the value."""
    text: str = yaml.safe_dump(value, sort_keys=False, width=120, allow_unicode=True)
    return text
