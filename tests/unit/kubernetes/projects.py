"""The stacks with their manifests under `rendered/`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from modelfleet.infra.planning import Plan
from tests.cluster.fleet import five_models, model, planned

L4 = {"name": "l4", "accelerator": "L4", "maxNodes": 3, "instanceTypes": ["g6.2xlarge"]}


def eks(root: Path) -> Plan:
    """All five accelerators on a new EKS cluster."""
    named = {"image": "modelfleet-serving:ray2.60.0"}  # the name of one that is made has the hash of its source
    return planned(root, five_models(), stack="prod", target="eks", kubernetes=named)


def existing(root: Path) -> Plan:
    """An existing cluster, with a host name, limits per key, Redis, `rollout: replace` and a Prometheus of its own."""
    models = [model("org/chat", "L4"), model("org/straight", "L4", hf_model_id="/models/straight")]
    kubernetes = {"rollout": "replace", "redisAddress": "redis.data:6379", "image": "registry.example/serving:1"}
    door = {
        "expose": "internal",
        "ingressClass": "nginx",
        "hostname": "llm.example.com",
        "tlsSecret": "llm-tls",
    }
    gateway = {**door, "requestsPerMinute": 60, "timeoutS": 1800}
    watched = {"metrics": "own", "webhookService": "http://hook.ops.svc:8080"}
    keys = {
        "kubernetes": kubernetes,
        "gateway": gateway,
        "observability": watched,
        "alertWebhook": {"secure": "v1:a:b"},
    }
    return planned(root, models, stack="dev", pools=[L4], **keys)


STACKS: dict[str, Callable[[Path], Plan]] = {"eks": eks, "existing-cluster": existing}
