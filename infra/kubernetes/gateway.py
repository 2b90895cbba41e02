"""`Gateway`: HAProxy in front of Ray Serve, its configuration, its Service, and what leads clients to it."""

from __future__ import annotations

import pulumi

from modelfleet.infra.kubernetes.manifests import load_balancer
from modelfleet.infra.kubernetes.manifests.everything import gateway
from modelfleet.infra.kubernetes.manifests.everything import load_balancer as balancer_manifests
from modelfleet.infra.kubernetes.names import GATEWAY
from modelfleet.infra.kubernetes.objects import each, forced, resource
from modelfleet.infra.planning.plan import Plan


class LoadBalancer(pulumi.ComponentResource):
    """Children: the controller's CRDs, account, rights and Deployment, and the TargetGroupBinding. None without one.

    The binding goes first when the stack is destroyed, while the controller still takes the pods out.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        cluster_name: str,
        target_group_arn: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:kubernetes:LoadBalancer", name, None, opts)
        crds = each(name, load_balancer.custom_resource_definitions(plan), pulumi.ResourceOptions(parent=self))
        after = pulumi.ResourceOptions(parent=self, depends_on=crds)
        *parts, binding = balancer_manifests(plan, cluster_name, target_group_arn)
        made = each(name, parts, after)
        resource(f"{name}-binding", binding, pulumi.ResourceOptions(parent=self, depends_on=made))
        self.register_outputs({})


class Gateway(pulumi.ComponentResource):
    """Children: ConfigMap, Deployment, Service, Ingress or Gateway and HTTPRoute.

    `base_url` is the address that clients use.
    """

    base_url: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        keys_id: pulumi.Output[str],
        balancer: pulumi.Input[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:kubernetes:Gateway", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        files, deployment, *rest = gateway(plan, keys_id)
        config = resource(f"{name}-config", files, child)
        after = pulumi.ResourceOptions(
            parent=self,
            depends_on=[config],
            # Old pods live until their last stream ends. The run need not wait for that; new pods are ready in seconds.
            custom_timeouts=pulumi.CustomTimeouts(create="10m", update="10m"),
        )
        resource(f"{name}-deployment", forced(deployment), after)  # `modelfleet key revoke` rolls its pods, too
        each(name, rest, child)
        self.base_url = pulumi.Output.from_input(balancer).apply(lambda dns_name: base_url(plan, dns_name))
        self.register_outputs({"base_url": self.base_url})


def base_url(plan: Plan, balancer: str | None) -> str:
    """What clients use: the front door's host name, else the `balancer`'s own, else the Service's in the cluster."""
    door = plan.front_door
    if door is None:
        return f"http://{GATEWAY}.{plan.namespace}.svc.cluster.local/v1"
    return door.base_url or f"{door.scheme}://{balancer}/v1"
