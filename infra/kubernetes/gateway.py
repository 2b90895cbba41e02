"""`Gateway`: HAProxy in front of Ray Serve, its configuration, its Service and, with a host name, its Ingress."""

from __future__ import annotations

import pulumi

from modelfleet.infra.kubernetes.manifests.everything import gateway
from modelfleet.infra.kubernetes.names import GATEWAY
from modelfleet.infra.kubernetes.objects import each, resource
from modelfleet.infra.planning.plan import Plan


class Gateway(pulumi.ComponentResource):
    """Children: ConfigMap, Deployment, Service, Ingress. `base_url` is the address that clients use."""

    base_url: str

    def __init__(
        self, name: str, plan: Plan, *, keys_id: pulumi.Output[str], opts: pulumi.ResourceOptions | None = None
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
        resource(f"{name}-deployment", deployment, after)
        each(name, rest, child)
        self.base_url = base_url(plan)
        self.register_outputs({"base_url": self.base_url})


def base_url(plan: Plan) -> str:
    """`https://<hostname>/v1` with an Ingress, else the Service's name inside the cluster."""
    if plan.gateway.settings.hostname is None:
        return f"http://{GATEWAY}.{plan.namespace}.svc.cluster.local/v1"
    return f"https://{plan.gateway.settings.hostname}/v1"
