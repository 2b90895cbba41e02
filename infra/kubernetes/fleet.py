"""`KubernetesFleet`: the cluster half of a stack, on EKS or on any cluster with a kubeconfig."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from modelfleet.infra.kubernetes.cluster_add_ons import ClusterAddOns
from modelfleet.infra.kubernetes.gateway import Gateway, LoadBalancer
from modelfleet.infra.kubernetes.group_limits import follow_limits
from modelfleet.infra.kubernetes.ladder_return import LadderReturn
from modelfleet.infra.kubernetes.manifest_key import ManifestKey, Signing
from modelfleet.infra.kubernetes.manifests.ray import STORE_ADDRESS
from modelfleet.infra.kubernetes.mirrors import Mirrors
from modelfleet.infra.kubernetes.namespace import Namespace
from modelfleet.infra.kubernetes.observability import Observability
from modelfleet.infra.kubernetes.operator import Operator
from modelfleet.infra.kubernetes.ray import RayFleet
from modelfleet.infra.kubernetes.rollout import rebuild_notice
from modelfleet.infra.kubernetes.secrets import Secrets
from modelfleet.infra.kubernetes.warm_ups import WarmUps
from modelfleet.infra.planning.plan import Plan


def connection(
    name: str,
    plan: Plan,
    *,
    kubeconfig: pulumi.Input[str] | None = None,
    take_over: bool = False,
    opts: pulumi.ResourceOptions | None = None,
) -> k8s.Provider:
    """The provider for `kubeconfig` (of a new cluster), else for the stack's own settings, else for kubectl's.

    Without `take_over` an existing object is an error, so that a run never changes or deletes what others made.
    """
    settings = plan.config.kubernetes
    return k8s.Provider(
        name,
        kubeconfig=kubeconfig if kubeconfig is not None else settings.kubeconfig,
        context=None if kubeconfig is not None else settings.context,
        # A kubeconfig's text changes (tokens, certificates), but only another stack means another cluster.
        cluster_identifier=plan.stack,
        enable_server_side_apply=True,
        # Otherwise a changed key map or configuration deletes the Secret or ConfigMap before it makes the new one.
        enable_config_map_mutable=True,
        enable_secret_mutable=True,
        upsert_existing_objects=take_over,
        opts=opts,
    )


@dataclass(frozen=True)
class HeadStorage:
    """The store that the stack made for the Ray head's state: `rediss://host:port`, and the password."""

    address: pulumi.Output[str]
    password: pulumi.Output[str]


class KubernetesFleet(pulumi.ComponentResource):
    """Children in order: two providers, add-ons (EKS), namespace, operator, secrets, key of manifests where the stack
    makes one, mirrors, Ray, warm-ups where a pool seals compile caches, return, gateway, and what watches the stack.

    `ready` is what must exist first: the cluster's access and nodes, the code artifact in the bucket. `image` and
    `mirror_image` are images by their digests, where the plan knows only their tags. With a load balancer,
    `target_group_arn` is where the gateway's pods are registered and `balancer` its name in DNS. `head_storage` is what
    the plan's `head_storage` became, and `signing` a key of manifests that the stack made.
    `destroy` runs in reverse order: the RayService's pods end while the operator still runs.
    """

    base_url: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        kubeconfig: pulumi.Input[str] | None = None,
        cluster_name: str = "",
        target_group_arn: pulumi.Input[str] | None = None,
        balancer: pulumi.Input[str] | None = None,
        huggingface_token: pulumi.Output[str] | None = None,
        api_keys: pulumi.Output[Mapping[str, str]] | None = None,
        alert_webhook: pulumi.Output[str] | None = None,
        head_storage: HeadStorage | None = None,
        signing: Signing | None = None,
        image: pulumi.Input[str] | None = None,
        mirror_image: pulumi.Input[str] | None = None,
        ready: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        if plan.target.makes_cluster and kubeconfig is not None:
            # A preview knows the kubeconfig only if the cluster already exists.
            pulumi.Output.from_input(kubeconfig).apply(lambda text: _say_rebuild(text, plan))
        if not pulumi.runtime.is_dry_run():
            pulumi.Output.from_input(kubeconfig).apply(lambda text: _follow_limits(text, plan))
        super().__init__("modelfleet:kubernetes:Fleet", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        self._connection = connection(f"{name}-cluster", plan, kubeconfig=kubeconfig, opts=child)
        shared = connection(f"{name}-shared", plan, kubeconfig=kubeconfig, take_over=True, opts=child)
        self._ready = list(ready)
        ClusterAddOns(f"{name}-add-ons", plan, cluster_name, opts=self._child())
        namespace = Namespace(f"{name}-base", plan, opts=self._child())
        operator = Operator(f"{name}-operator", plan, shared=shared, opts=self._child(*namespace.ready))
        secrets = Secrets(
            f"{name}-secrets",
            plan,
            huggingface_token=huggingface_token,
            api_keys=api_keys,
            alert_webhook=alert_webhook,
            head_storage_password=head_storage.password if head_storage else None,
            opts=self._child(*namespace.own),
        )
        known = [*namespace.ready, *secrets.ready]
        if signing is not None:
            known += ManifestKey(f"{name}-manifest-key", plan, signing, opts=self._child(*namespace.ready)).ready
        Mirrors(f"{name}-mirrors", plan, image=mirror_image, opts=self._child(*known))
        served = RayFleet(
            f"{name}-ray",
            plan,
            image=image,
            kubeconfig=kubeconfig,
            store_address=head_storage.address if head_storage else STORE_ADDRESS,
            opts=self._child(*known, *operator.ready),
        )
        if plan.sealed_pools:
            # After the models: their weights are in the bucket then, and no node with a GPU waits for these.
            WarmUps(f"{name}-warm-ups", plan, image=image, opts=self._child(*namespace.ready, served))
        LadderReturn(f"{name}-return", plan, image=image, opts=self._child(*namespace.ready, *operator.ready))
        # The gateway's pods are ready once the load balancer asks them, so its update must not run ahead of it.
        door = (
            [
                LoadBalancer(
                    f"{name}-balancer",
                    plan,
                    cluster_name=cluster_name,
                    target_group_arn=target_group_arn,
                    opts=self._child(*namespace.ready),
                )
            ]
            if target_group_arn is not None
            else []
        )
        gateway = Gateway(
            f"{name}-gateway",
            plan,
            keys_id=secrets.keys_id,
            balancer=balancer,
            opts=self._child(*namespace.ready, *secrets.ready, *door),
        )
        if plan.monitoring is not None or plan.own_monitoring is not None:
            Observability(f"{name}-observability", plan, opts=self._child(*namespace.ready, *secrets.ready))
        self.base_url = gateway.base_url
        self.register_outputs({"base_url": self.base_url})

    def _child(self, *after: pulumi.Resource) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=self, providers=[self._connection], depends_on=[*self._ready, *after])


def _follow_limits(kubeconfig: str | None, plan: Plan) -> None:
    """Before the RayService changes: its models may need the nodes that a raised limit allows."""
    for said in follow_limits(kubeconfig, plan):
        pulumi.log.info(said)


def _say_rebuild(kubeconfig: str, plan: Plan) -> None:
    if notice := rebuild_notice(kubeconfig, plan, preview=pulumi.runtime.is_dry_run()):
        pulumi.log.warn(notice)
