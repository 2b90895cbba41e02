"""`Observability`: what the cluster's Prometheus Operator watches the stack by, or a Prometheus of the stack's own."""

from __future__ import annotations

import pulumi

from modelfleet.infra.kubernetes.manifests.observability import observability
from modelfleet.infra.kubernetes.manifests.own_monitoring import own_monitoring
from modelfleet.infra.kubernetes.objects import each
from modelfleet.infra.planning.plan import Plan


class Observability(pulumi.ComponentResource):
    """Children: PodMonitors, PrometheusRules, and a ConfigMap per dashboard; or Prometheus with all that it needs."""

    def __init__(self, name: str, plan: Plan, *, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("modelfleet:kubernetes:Observability", name, None, opts)
        each(name, [*observability(plan), *own_monitoring(plan)], pulumi.ResourceOptions(parent=self))
        self.register_outputs({})
