"""The components of each target. A target's providers are imported only when a stack uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi

from modelfleet.infra.names import local_folder
from modelfleet.infra.planning.monitoring import ALERT_WEBHOOK, webhook_refused
from modelfleet.infra.planning.plan import Plan
from modelfleet.serving.config.errors import SetupError

Outputs = Mapping[str, Any]
#: The names of what `build` returns, by target.
OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "local": ("base_url",),
    "eks": ("base_url", "kubeconfig", "endpoint", "bucket", "image", "pools", "min_usd_per_hour"),
    "kubernetes": ("base_url",),
}


@dataclass(frozen=True)
class Given:
    """What a program has besides the plan: secrets, the kubeconfig of a cluster that exists, and a parent.

    `api_keys` are keys by name; the gateway gets only their hashes. `alert_webhook` is the URL to which the stack's own
    Alertmanager sends.
    """

    huggingface_token: pulumi.Input[str] | None = None
    api_keys: pulumi.Input[Mapping[str, str]] | None = None
    alert_webhook: pulumi.Input[str] | None = None
    kubeconfig: pulumi.Input[str] | None = None
    kubeconfig_text: str | None = None
    parent: pulumi.Resource | None = None


def build(root: Path, plan: Plan, given: Given = Given()) -> Outputs:
    """Register the fleet of the plan's target; returns the outputs that not every target has.

    Raises `InputErrors` and `SetupError` for what the account, the cluster or this machine lacks.
    """
    return {"local": _local, "eks": _eks, "kubernetes": _kubernetes}[plan.target.name](root, plan, given)


def _local(root: Path, plan: Plan, given: Given) -> Outputs:
    from modelfleet.infra.local import emulator
    from modelfleet.infra.local.fleet import LocalFleet

    if plan.stops_up:
        raise SetupError("\n".join(plan.stops_up))
    webhook = _alert_webhook(plan, given)
    emulator.start(plan.config.local.s3_port, root / ".modelfleet")
    folder = local_folder(root, plan.stack)
    fleet = LocalFleet(
        plan.stack,
        plan,
        folder=folder,
        api_keys=_api_keys(plan, given),
        alert_webhook=webhook,
        opts=_below(given),
    )
    return {"base_url": fleet.base_url}


def _eks(root: Path, plan: Plan, given: Given) -> Outputs:
    from modelfleet.infra.aws import AwsFleet
    from modelfleet.infra.aws.site import cluster_name
    from modelfleet.infra.kubernetes.fleet import HeadStorage, KubernetesFleet
    from modelfleet.infra.kubernetes.manifest_key import Signing

    webhook = _alert_webhook(plan, given)
    cloud = AwsFleet(plan.stack, plan, code=_code(root, plan), image_source=_image(root, plan), opts=_below(given))
    fleet = KubernetesFleet(
        plan.stack,
        plan,
        kubeconfig=cloud.kubeconfig,
        cluster_name=cluster_name(plan),
        target_group_arn=cloud.front_door.target_group_arn if cloud.front_door else None,
        balancer=cloud.front_door.dns_name if cloud.front_door else None,
        huggingface_token=_output(given.huggingface_token),
        api_keys=_api_keys(plan, given),
        alert_webhook=webhook,
        head_storage=HeadStorage(store.address, store.password) if (store := cloud.head_storage) else None,
        signing=Signing(key.arn, key.public) if (key := cloud.manifest_key) else None,
        image=cloud.image,
        mirror_image=cloud.mirror_image,
        ready=cloud.ready,
        opts=_below(given),
    )
    return {
        "base_url": fleet.base_url,
        "kubeconfig": cloud.kubeconfig,
        "endpoint": cloud.endpoint,
        "bucket": cloud.bucket,
        "image": cloud.image or plan.ray_cluster.image,
        "pools": cloud.pools,
        "min_usd_per_hour": plan.cost.min_usd_per_hour,
        **({"metrics_endpoint": cloud.prometheus.endpoint} if cloud.prometheus else {}),
    }


def _kubernetes(root: Path, plan: Plan, given: Given) -> Outputs:
    from modelfleet.infra.aws.storage import make_storage
    from modelfleet.infra.kubernetes.fleet import KubernetesFleet
    from modelfleet.infra.kubernetes.preflight import check_cluster

    webhook = _alert_webhook(plan, given)
    # Raises `SetupError` before the first resource when the cluster lacks something.
    if notice := check_cluster(plan, given.kubeconfig_text):
        pulumi.log.warn(notice)
    storage = make_storage(plan.stack, plan, code=_code(root, plan), opts=_below(given))
    fleet = KubernetesFleet(
        plan.stack,
        plan,
        kubeconfig=given.kubeconfig,
        huggingface_token=_output(given.huggingface_token),
        api_keys=_api_keys(plan, given),
        alert_webhook=webhook,
        ready=storage.ready,
        opts=_below(given),
    )
    return {"base_url": fleet.base_url}


def _below(given: Given) -> pulumi.ResourceOptions | None:
    return pulumi.ResourceOptions(parent=given.parent) if given.parent else None


def _code(root: Path, plan: Plan) -> pulumi.Asset:
    """The serving package as a file, for the object in the bucket."""
    from modelfleet.infra.reading.code import build_code_zip

    return _file(root / ".modelfleet" / plan.code.key, build_code_zip())


def _image(root: Path, plan: Plan) -> pulumi.Asset | None:
    """What the images are made from, as a file; None where the stack makes none."""
    from modelfleet.infra.reading.image import build_image_zip

    return _file(root / ".modelfleet" / plan.image.source.key, build_image_zip()) if plan.image else None


def _file(path: Path, content: bytes) -> pulumi.Asset:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return pulumi.FileAsset(str(path))


def _output(value: pulumi.Input[Any] | None) -> pulumi.Output[Any] | None:
    return None if value is None else pulumi.Output.secret(value)


def _api_keys(plan: Plan, given: Given) -> pulumi.Output[Mapping[str, str]] | None:
    """The API keys by name; None when the gateway needs none."""
    return _output(given.api_keys) if plan.gateway.auth == "keys" else None


def _alert_webhook(plan: Plan, given: Given) -> pulumi.Output[str] | None:
    """The URL to which alerts go; None where they are only shown. A run that gets it refuses what cannot be reached.

    Raises `SetupError` where the program does not hand over what the stack file has.
    """
    if plan.own_monitoring is None or not plan.own_monitoring.sends:
        return None
    if given.alert_webhook is None:
        raise SetupError(
            f"modelfleet:{ALERT_WEBHOOK} is set, and the program does not hand it over; "
            f'give Fleet `alert_webhook=pulumi.Config().require_secret("{ALERT_WEBHOOK}")`'
        )

    def taken(url: str) -> str:
        if refused := webhook_refused(url.strip(), plan):
            raise pulumi.RunError(refused)
        return url.strip()

    return pulumi.Output.secret(given.alert_webhook).apply(taken)
