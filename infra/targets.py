"""Which components a target is made of. Each imports its own providers only when it is the one that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi

from infra.planning.plan import Plan

Outputs = Mapping[str, Any]


def build(root: Path, plan: Plan) -> Outputs:
    """Registers the fleet of the plan's target; returns the stack's outputs beside those of every target."""
    return {"local": _local, "eks": _eks, "kubernetes": _kubernetes}[plan.target](root, plan)


def _local(root: Path, plan: Plan) -> Outputs:
    from infra.local.emulator import ensure_emulator
    from infra.local.fleet import LocalFleet

    ensure_emulator(plan.config.local.s3_port)
    fleet = LocalFleet(plan.stack, plan, folder=root / ".modelfleet" / "local" / plan.stack, api_keys=_api_keys(plan))
    return {"base_url": fleet.base_url}


def _eks(root: Path, plan: Plan) -> Outputs:
    from infra.aws import AwsFleet
    from infra.aws.site import cluster_name
    from infra.kubernetes.fleet import KubernetesFleet
    from infra.stack import load_stack

    place = load_stack(root, plan.stack).finding
    cloud = AwsFleet(plan.stack, plan, code=_code(root, plan), place=place)
    fleet = KubernetesFleet(
        plan.stack,
        plan,
        kubeconfig=cloud.kubeconfig,
        cluster_name=cluster_name(plan),
        huggingface_token=_secret("huggingFaceToken"),
        api_keys=_api_keys(plan),
        ready=cloud.ready,
    )
    return {
        "base_url": fleet.base_url,
        "kubeconfig": cloud.kubeconfig,
        "endpoint": cloud.endpoint,
        "bucket": cloud.bucket,
        "pools": cloud.pools,
        "min_usd_per_hour": plan.cost.min_usd_per_hour,
    }


def _kubernetes(root: Path, plan: Plan) -> Outputs:
    from infra.kubernetes.fleet import KubernetesFleet

    fleet = KubernetesFleet(
        plan.stack,
        plan,
        code=_code(root, plan),
        huggingface_token=_secret("huggingFaceToken"),
        api_keys=_api_keys(plan),
    )
    return {"base_url": fleet.base_url}


def _code(root: Path, plan: Plan) -> pulumi.Asset:
    """The serving package as a file, for the object in the bucket."""
    from infra.workspace import build_code_zip

    archive = root / ".modelfleet" / plan.code.key
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(build_code_zip())
    return pulumi.FileAsset(str(archive))


def _secret(key: str) -> pulumi.Output[str] | None:
    secret: pulumi.Output[str] | None = pulumi.Config("modelfleet").get_secret(key)
    return secret


def _api_keys(plan: Plan) -> pulumi.Output[Mapping[str, str]] | None:
    """The stack's API keys by name, for a gateway that asks for them."""
    if plan.gateway.auth != "keys":
        return None
    keys: pulumi.Output[Mapping[str, str]] | None = pulumi.Config("modelfleet").get_secret_object("apiKeys")
    return keys
