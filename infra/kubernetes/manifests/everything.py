"""All manifests of a stack, component by component: what `up` applies and `modelfleet manifests` writes.

The components of `infra/kubernetes` take their objects from these functions, so that the two cannot differ. Pulumi
only adds its own annotations (`pulumi.com/…`), which tell it how to wait.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from modelfleet.infra.gateway.render import DOOR
from modelfleet.infra.kubernetes.manifests.autoscaler import cluster_autoscaler
from modelfleet.infra.kubernetes.manifests.gateway import (
    gateway_config,
    gateway_deployment,
    gateway_ingress,
    gateway_queues,
    gateway_route,
    gateway_service,
)
from modelfleet.infra.kubernetes.manifests.gpu import dcgm_exporter, device_plugin
from modelfleet.infra.kubernetes.manifests.guard import head_guard
from modelfleet.infra.kubernetes.manifests.ladder_return import ladder_return
from modelfleet.infra.kubernetes.manifests.load_balancer import controller, target_group_binding
from modelfleet.infra.kubernetes.manifests.load_balancer import custom_resource_definitions as balancer_definitions
from modelfleet.infra.kubernetes.manifests.log_collector import log_collector
from modelfleet.infra.kubernetes.manifests.manifest_key import manifest_key
from modelfleet.infra.kubernetes.manifests.mirror import mirror_job, mirrored
from modelfleet.infra.kubernetes.manifests.namespace import (
    disruption_budgets,
    namespaces,
    priority_class,
    quotas,
    service_accounts,
)
from modelfleet.infra.kubernetes.manifests.network import network_policies
from modelfleet.infra.kubernetes.manifests.observability import observability
from modelfleet.infra.kubernetes.manifests.operator import (
    custom_resource_definitions,
    operator_account,
    operator_binding,
    operator_deployment,
    operator_role,
)
from modelfleet.infra.kubernetes.manifests.own_monitoring import own_monitoring
from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.manifests.ray import STORE_ADDRESS, ray_service, serve_service
from modelfleet.infra.kubernetes.manifests.scripts import mirror_scripts, scripts, serving_code
from modelfleet.infra.kubernetes.manifests.secrets import (
    alert_webhook,
    authority,
    gateway_keys,
    head_storage,
    huggingface,
)
from modelfleet.infra.kubernetes.manifests.warm_up import warm_up_job, warm_up_priority_class, warmed
from modelfleet.infra.planning.plan import Plan

#: Replaces a secret's value or a hash of it.
PLACEHOLDER: Final = "PLACEHOLDER"


def cluster_add_ons(plan: Plan, cluster_name: str) -> list[Manifest]:
    """What a new EKS cluster lacks; an existing cluster is used as its owner made it."""
    if not plan.target.makes_cluster:
        return []
    parts = [device_plugin(plan), dcgm_exporter(plan), *cluster_autoscaler(plan, cluster_name)]
    return [*parts, *log_collector(plan, cluster_name)]


def operator(plan: Plan) -> list[Manifest]:
    """KubeRay's operator with its rights, without its CRDs; nothing if the cluster has an operator."""
    if not plan.own_operator:
        return []
    return [operator_account(plan), operator_role(plan), operator_binding(plan), operator_deployment(plan)]


def base(plan: Plan) -> list[Manifest]:
    """The namespaces, unless they exist already, and their rules."""
    return [
        *namespaces(plan),
        *priority_class(plan),
        *quotas(plan),
        *service_accounts(plan),
        *head_guard(plan),
        *network_policies(plan),
        *disruption_budgets(plan),
    ]


def ray(plan: Plan, store_address: Any = STORE_ADDRESS) -> list[Manifest]:
    """The scripts that pods mount, the Service in front of Serve, and the RayService."""
    return [scripts(plan), serve_service(plan), ray_service(plan, store_address)]


def mirrors(plan: Plan) -> list[Manifest]:
    """Where the code is, the Jobs' program, and a Job for each of what the stack copies."""
    jobs = [mirror_job(plan, model, mirror) for model, mirror in mirrored(plan)]
    return [serving_code(plan), *mirror_scripts(plan), *jobs]


def warm_ups(plan: Plan) -> list[Manifest]:
    """A Job for each compile cache that is sealed, and their class; they need what `mirrors` has."""
    return [*warm_up_priority_class(plan), *(warm_up_job(plan, model) for model in warmed(plan))]


def gateway(plan: Plan, keys_id: Any) -> list[Manifest]:
    """The gateway's configuration, its pods, its Services and, on a cluster that is not ours, its Ingress or route."""
    parts = [gateway_config(plan), gateway_deployment(plan, keys_id), gateway_service(plan), gateway_queues(plan)]
    return [*parts, *gateway_ingress(plan), *gateway_route(plan)]


def load_balancer(plan: Plan, cluster_name: str, target_group_arn: Any) -> list[Manifest]:
    """What registers the gateway's pods with the load balancer; the gateway's pods are ready only with it."""
    return [*controller(plan, cluster_name), *target_group_binding(plan, target_group_arn, DOOR)]


def everything(plan: Plan, *, keys_id: str = "", cluster_name: str = "") -> list[Manifest]:
    """The stack without CRDs (see `operator.custom_resource_definitions`) and without Secrets."""
    return [
        *cluster_add_ons(plan, cluster_name),
        *base(plan),
        *operator(plan),
        *manifest_key(plan, PLACEHOLDER, PLACEHOLDER),
        *ray(plan),
        *ladder_return(plan),
        *mirrors(plan),
        *warm_ups(plan),
        *load_balancer(plan, cluster_name, PLACEHOLDER),
        *gateway(plan, keys_id),
        *observability(plan),
        *own_monitoring(plan),
    ]


def with_secrets(plan: Plan, *, secrets: Collection[str], cluster_name: str = "") -> list[Manifest]:
    """`everything` with the CRDs and the Secrets; each secret value is the text PLACEHOLDER.

    `secrets` are the secret keys that the stack file sets: `huggingFaceToken`, `apiKeys`, `alertWebhook`.
    """
    with_keys = plan.gateway.auth == "keys" and "apiKeys" in secrets
    return [
        *(custom_resource_definitions() if plan.own_operator else []),
        *balancer_definitions(plan),
        *everything(plan, keys_id=PLACEHOLDER if with_keys else "", cluster_name=cluster_name),
        *(huggingface(plan, PLACEHOLDER) if "huggingFaceToken" in secrets else []),
        *([gateway_keys(plan, PLACEHOLDER)] if with_keys else []),
        *([alert_webhook(plan, PLACEHOLDER)] if plan.own_monitoring and plan.own_monitoring.sends else []),
        *([head_storage(plan, PLACEHOLDER)] if plan.head_storage else []),
        *authority(plan, PLACEHOLDER, PLACEHOLDER),
    ]
