"""What watches a stack, as functions of its plan: Prometheus rules, scrape configuration, Grafana dashboards, `top`.

Nothing here needs a cluster. `infra/kubernetes/manifests/observability.py` makes objects of it for an operator that a
cluster has, `modelfleet observability` writes files for any Prometheus and Grafana.
"""

from modelfleet.infra.observability.dashboards import dashboards
from modelfleet.infra.observability.rules import rule_groups
from modelfleet.infra.observability.scrape import scrape_configs

__all__ = ["dashboards", "rule_groups", "scrape_configs"]
