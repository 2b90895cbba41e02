"""`ClusterAddOns`: device plugin, GPU exporter, node autoscaler and log collector of a new EKS cluster."""

from __future__ import annotations

import pulumi

from modelfleet.infra.kubernetes.manifests.everything import cluster_add_ons
from modelfleet.infra.kubernetes.objects import each
from modelfleet.infra.planning.plan import Plan


class ClusterAddOns(pulumi.ComponentResource):
    """Children: DaemonSets and the autoscaler's account, role, binding and Deployment, all in kube-system; the log
    collector, where the stack has one, with its account and configuration."""

    def __init__(self, name: str, plan: Plan, cluster_name: str, *, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("modelfleet:kubernetes:ClusterAddOns", name, None, opts)
        each(name, cluster_add_ons(plan, cluster_name), pulumi.ResourceOptions(parent=self))
        self.register_outputs({})
