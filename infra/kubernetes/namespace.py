"""`Namespace`: the stack's namespaces with Pod Security, quota, accounts, network policies and disruption budgets."""

from __future__ import annotations

import pulumi

from modelfleet.infra.kubernetes.manifests.everything import base
from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.objects import each, resource
from modelfleet.infra.planning.plan import Plan


class Namespace(pulumi.ComponentResource):
    """Children: the namespaces, and everything in them without pods, made after them and deleted before them.

    A namespace that exists already is nobody's child: it keeps its labels, and stays when the stack goes.
    """

    def __init__(self, name: str, plan: Plan, *, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("modelfleet:kubernetes:Namespace", name, None, opts)
        manifests = base(plan)
        child = pulumi.ResourceOptions(parent=self)
        self.own = [
            resource(_resource_name(name, plan, one), one, child) for one in manifests if one["kind"] == "Namespace"
        ]
        rest = [one for one in manifests if one["kind"] != "Namespace"]
        inside = pulumi.ResourceOptions(parent=self, depends_on=self.own)
        self.ready = [*self.own, *each(name, rest, inside)]
        self.register_outputs({"name": plan.namespace})


def _resource_name(name: str, plan: Plan, namespace: Manifest) -> str:
    return f"{name}-namespace" if namespace["metadata"]["name"] == plan.namespace else f"{name}-mirror-namespace"
