"""`Namespace`: the stack's namespace with Pod Security, quota, accounts, network policies and disruption budgets."""

from __future__ import annotations

import pulumi

from infra.kubernetes.manifests.everything import base
from infra.kubernetes.objects import each, resource
from infra.planning.plan import Plan


class Namespace(pulumi.ComponentResource):
    """Children: the namespace, and everything in it that has no pods, which waits for it and goes before it."""

    def __init__(self, name: str, plan: Plan, *, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("modelfleet:kubernetes:Namespace", name, None, opts)
        namespace, *rest = base(plan)
        child = pulumi.ResourceOptions(parent=self)
        self.namespace = resource(f"{name}-namespace", namespace, child)
        inside = pulumi.ResourceOptions(parent=self, depends_on=[self.namespace])
        self.ready = [self.namespace, *each(name, rest, inside)]
        self.register_outputs({"name": plan.namespace})
