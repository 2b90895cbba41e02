"""`Namespace`: the stack's namespace with Pod Security, quota, accounts, network policies and disruption budgets."""

from __future__ import annotations

import pulumi

from modelfleet.infra.kubernetes.manifests.everything import base
from modelfleet.infra.kubernetes.objects import each, resource
from modelfleet.infra.planning.plan import Plan


class Namespace(pulumi.ComponentResource):
    """Children: the namespace, and everything in it without pods, made after it and deleted before it.

    A namespace that exists already is nobody's child: it keeps its labels, and stays when the stack goes.
    """

    def __init__(self, name: str, plan: Plan, *, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("modelfleet:kubernetes:Namespace", name, None, opts)
        manifests = base(plan)
        child = pulumi.ResourceOptions(parent=self)
        self.own = [resource(f"{name}-namespace", one, child) for one in manifests if one["kind"] == "Namespace"]
        rest = [one for one in manifests if one["kind"] != "Namespace"]
        inside = pulumi.ResourceOptions(parent=self, depends_on=self.own)
        self.ready = [*self.own, *each(name, rest, inside)]
        self.register_outputs({"name": plan.namespace})
