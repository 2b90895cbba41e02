"""`Operator`: KubeRay's CRDs and after them its operator; an old CRD with a new operator lost workers (kuberay#2084)."""

from __future__ import annotations

import pulumi

from infra.kubernetes.manifests.everything import operator
from infra.kubernetes.manifests.operator import custom_resource_definitions
from infra.kubernetes.objects import each
from infra.planning.plan import Plan


class Operator(pulumi.ComponentResource):
    """Children: the CRDs, kept when the stack goes because other stacks may use them; account, role, Deployment."""

    def __init__(self, name: str, plan: Plan, *, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("modelfleet:kubernetes:Operator", name, None, opts)
        keep = pulumi.ResourceOptions(parent=self, retain_on_delete=True)
        crds = each(name, custom_resource_definitions(), keep)
        after = pulumi.ResourceOptions(parent=self, depends_on=crds)
        self.ready = [*crds, *each(name, operator(plan), after)]
        self.register_outputs({})
