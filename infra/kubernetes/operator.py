"""`Operator`: KubeRay's CRDs, then its operator; a new operator on an old CRD lost workers (kuberay#2084)."""

from __future__ import annotations

import pulumi
import pulumi_kubernetes as k8s

from modelfleet.infra.kubernetes.manifests.everything import operator
from modelfleet.infra.kubernetes.manifests.operator import custom_resource_definitions
from modelfleet.infra.kubernetes.objects import FORCE, each
from modelfleet.infra.planning.plan import Plan


class Operator(pulumi.ComponentResource):
    """Children: the CRDs; account, role, binding and Deployment of the operator. None if the cluster has one.

    The CRDs belong to the cluster: `shared` takes over existing ones, and they stay when the stack is destroyed,
    because other stacks may use them.
    """

    def __init__(
        self, name: str, plan: Plan, *, shared: k8s.Provider, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("modelfleet:kubernetes:Operator", name, None, opts)
        manifests = custom_resource_definitions() if plan.own_operator else []
        for crd in manifests:  # the last run that applied them owns them, even if another owned them before
            crd["metadata"].setdefault("annotations", {}).update(FORCE)
        keep = pulumi.ResourceOptions(parent=self, provider=shared, retain_on_delete=True)
        crds = each(name, manifests, keep)
        after = pulumi.ResourceOptions(parent=self, depends_on=crds)
        self.ready = [*crds, *each(name, operator(plan), after)]
        self.register_outputs({})
