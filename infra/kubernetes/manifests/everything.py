"""All manifests of a stack in dependency order; what `modelfleet render` shows and the tests apply."""

from __future__ import annotations

from infra.kubernetes.manifests.autoscaler import cluster_autoscaler
from infra.kubernetes.manifests.gateway import (
    gateway_config,
    gateway_deployment,
    gateway_ingress,
    gateway_service,
)
from infra.kubernetes.manifests.gpu import dcgm_exporter, device_plugin
from infra.kubernetes.manifests.mirror import mirror_job, mirrored
from infra.kubernetes.manifests.namespace import disruption_budgets, namespace, quota, service_accounts
from infra.kubernetes.manifests.network import network_policies
from infra.kubernetes.manifests.operator import (
    operator_account,
    operator_binding,
    operator_deployment,
    operator_role,
)
from infra.kubernetes.manifests.pods import Manifest
from infra.kubernetes.manifests.ray import ray_service
from infra.kubernetes.manifests.scripts import scripts, serving_code
from infra.planning.plan import Plan


def cluster_add_ons(plan: Plan, cluster_name: str) -> list[Manifest]:
    """What a new EKS cluster lacks; an existing cluster is taken as its owner made it."""
    if plan.target != "eks":
        return []
    return [device_plugin(plan), dcgm_exporter(plan), *cluster_autoscaler(plan, cluster_name)]


def operator(plan: Plan) -> list[Manifest]:
    """KubeRay's operator with its rights, without its CRDs; nothing where the cluster has an operator."""
    if not plan.own_operator:
        return []
    return [operator_account(plan), operator_role(plan), operator_binding(plan), operator_deployment(plan)]


def base(plan: Plan) -> list[Manifest]:
    """The namespace and its rules."""
    return [
        namespace(plan),
        quota(plan),
        *service_accounts(plan),
        *network_policies(plan),
        *disruption_budgets(plan),
    ]


def everything(plan: Plan, *, keys_id: str = "", cluster_name: str = "") -> list[Manifest]:
    """The stack without CRDs (see `operator.custom_resource_definitions`) and without Secrets."""
    return [
        *cluster_add_ons(plan, cluster_name),
        *base(plan),
        *operator(plan),
        scripts(plan),
        serving_code(plan),
        *(mirror_job(plan, model) for model in mirrored(plan)),
        ray_service(plan),
        gateway_config(plan),
        gateway_deployment(plan, keys_id),
        gateway_service(plan),
        *gateway_ingress(plan),
    ]
