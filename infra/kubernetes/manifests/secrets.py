"""Secrets of the namespace. Their values may be Pulumi outputs; no other object in the cluster contains one."""

from __future__ import annotations

from typing import Any

from modelfleet.infra.kubernetes.manifests.gateway import KEY_MAP
from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.names import GATEWAY_KEYS, HEAD_STORAGE, HUGGINGFACE, REPLICA_HUGGINGFACE, labels
from modelfleet.infra.planning.plan import Plan


def huggingface(plan: Plan, token: Any) -> list[Manifest]:
    """The Secret for mirror Jobs, and one for replicas if a model loads straight from the Hub."""
    from_hub = any(
        model.mirror.prefix is None and "://" not in model.mirror.source and not model.mirror.source.startswith("/")
        for model in plan.models
    )
    names = [HUGGINGFACE, REPLICA_HUGGINGFACE] if from_hub else [HUGGINGFACE]
    return [_secret(plan, name, {"token": token}) for name in names]


def gateway_keys(plan: Plan, key_map: Any) -> Manifest:
    """The sha256 of each API key with its name, as HAProxy looks it up; never a key."""
    return _secret(plan, GATEWAY_KEYS, {KEY_MAP: key_map})


def head_storage(plan: Plan, password: Any) -> Manifest:
    """What Ray's head gives to the store that the stack makes for its state."""
    return _secret(plan, HEAD_STORAGE, {"password": password})


def authority(plan: Plan, certificate: Any, key: Any) -> list[Manifest]:
    """What the pods' certificates are made with, where Ray's processes speak TLS."""
    name = plan.ray_cluster.authority
    return [_secret(plan, name, {"tls.crt": certificate, "tls.key": key})] if name else []


def _secret(plan: Plan, name: str, data: dict[str, Any]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": plan.namespace, "labels": labels(plan, name)},
        "type": "Opaque",
        "stringData": data,
    }
