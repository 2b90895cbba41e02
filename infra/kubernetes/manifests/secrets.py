"""Secrets of the stack. Their values may be Pulumi outputs; no other object in the cluster contains one."""

from __future__ import annotations

from typing import Any

from modelfleet.infra.kubernetes.manifests.gateway import KEY_MAP
from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.names import (
    ALERT_WEBHOOK,
    GATEWAY_KEYS,
    HEAD_STORAGE,
    HUGGINGFACE,
    REPLICA_HUGGINGFACE,
    labels,
)
from modelfleet.infra.observability.own import WEBHOOK_FILE
from modelfleet.infra.planning.plan import Plan


def huggingface(plan: Plan, token: Any) -> list[Manifest]:
    """The Secret for mirror Jobs, where they run, and one for replicas if a model loads straight from the Hub."""
    from_hub = any(
        model.mirror.prefix is None and "://" not in model.mirror.source and not model.mirror.source.startswith("/")
        for model in plan.models
    )
    for_jobs = _secret(plan, HUGGINGFACE, {"token": token}, where=plan.mirror_namespace)
    return [for_jobs, *([_secret(plan, REPLICA_HUGGINGFACE, {"token": token})] if from_hub else [])]


def gateway_keys(plan: Plan, key_map: Any) -> Manifest:
    """The sha256 of each API key with its name, as HAProxy looks it up; never a key."""
    return _secret(plan, GATEWAY_KEYS, {KEY_MAP: key_map})


def head_storage(plan: Plan, password: Any) -> Manifest:
    """What Ray's head gives to the store that the stack makes for its state."""
    return _secret(plan, HEAD_STORAGE, {"password": password})


def alert_webhook(plan: Plan, url: Any) -> Manifest:
    """Where the stack's own Alertmanager sends alerts."""
    return _secret(plan, ALERT_WEBHOOK, {WEBHOOK_FILE: url})


def authority(plan: Plan, certificate: Any, key: Any) -> list[Manifest]:
    """What the pods' certificates are made with, where Ray's processes speak TLS."""
    name = plan.ray_cluster.authority
    return [_secret(plan, name, {"tls.crt": certificate, "tls.key": key})] if name else []


def _secret(plan: Plan, name: str, data: dict[str, Any], *, where: str | None = None) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": where or plan.namespace, "labels": labels(plan, name)},
        "type": "Opaque",
        "stringData": data,
    }
