"""`Gateway`: HAProxy in front of Ray Serve, its configuration, its Service and, with a host name, its Ingress."""

from __future__ import annotations

import pulumi

from infra.kubernetes.manifests.gateway import gateway_config, gateway_deployment, gateway_ingress, gateway_service
from infra.kubernetes.names import GATEWAY
from infra.kubernetes.objects import each, resource
from infra.planning.plan import Plan


class Gateway(pulumi.ComponentResource):
    """Children: ConfigMap, Deployment, Service, Ingress. `base_url` is where clients in the cluster, or outside, go."""

    base_url: str

    def __init__(
        self, name: str, plan: Plan, *, keys_id: pulumi.Output[str], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("modelfleet:kubernetes:Gateway", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        config = resource(f"{name}-config", gateway_config(plan), child)
        deployment = gateway_deployment(plan, keys_id)
        after = pulumi.ResourceOptions(
            parent=self,
            depends_on=[config],
            # Old pods live until their last stream ends, which is no reason to wait; new ones are ready in seconds.
            custom_timeouts=pulumi.CustomTimeouts(create="10m", update="10m"),
        )
        resource(f"{name}-deployment", deployment, after)
        each(name, [gateway_service(plan), *gateway_ingress(plan)], child)
        self.base_url = base_url(plan)
        self.register_outputs({"base_url": self.base_url})


def base_url(plan: Plan) -> str:
    """`https://<hostname>/v1` with an Ingress, else the Service's name inside the cluster."""
    if plan.gateway.hostname is None:
        return f"http://{GATEWAY}.{plan.namespace}.svc.cluster.local/v1"
    return f"https://{plan.gateway.hostname}/v1"
