"""Names of objects in a stack's namespace, and their labels."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from modelfleet.infra.names import READERS, SEALER, STACK_LABEL, WRITER
from modelfleet.infra.planning.plan import Plan

RAY_SERVICE: Final = "fleet"
#: KubeRay points this Service at the cluster, and in an upgrade moves it from the old cluster to the new one. Not by
#: KubeRay's own name for it, `fleet-serve-svc`: older stacks have that one with an address, and it could not lose it.
SERVE_SERVICE: Final = f"{RAY_SERVICE}-serve"

OPERATOR: Final = "kuberay-operator"
GATEWAY: Final = "gateway"
GATEWAY_KEYS: Final = "gateway-keys"
#: The addresses of all gateway pods, for whoever asks each how many requests wait.
GATEWAY_QUEUES: Final = "gateway-queues"
HUGGINGFACE: Final = "huggingface"
#: Exists only when a model loads straight from the Hub; GPU pods never see the mirror Job's token.
REPLICA_HUGGINGFACE: Final = "replica-huggingface"
#: Made by the user if pods have no role of their own: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL …
OBJECT_STORAGE: Final = "object-storage"
#: The password of the store that the stack makes for the head's state, and of a user's own, which the user makes.
HEAD_STORAGE: Final = "head-storage"
OWN_STORE: Final = "redis"
SCRIPTS: Final = "ray-scripts"
#: In the namespace of the mirror Jobs, if they have one of their own.
MIRROR_SCRIPTS: Final = "mirror-scripts"
LADDER_RETURN: Final = "ladder-return"
#: The Prometheus and the Alertmanager that the stack runs itself.
MONITOR: Final = "monitor"
#: The URL to which that Alertmanager sends.
ALERT_WEBHOOK: Final = "alert-webhook"
#: Pods that keep a node for a worker.
PLACEHOLDER: Final = f"{LADDER_RETURN}-placeholder"
SERVING_CODE: Final = "serving-code"
#: The public half of the key that the stack makes to sign manifests with, and which key it is.
MANIFEST_KEY: Final = "manifest-key"

#: ServiceAccounts with a role in AWS; the gateway and the operator have none.
HEAD_ACCOUNT, WORKER_ACCOUNT = READERS
MIRROR_ACCOUNT: Final = WRITER
WARM_UP_ACCOUNT: Final = SEALER

SERVE_PORT: Final = 8000
#: First and last port at which replicas listen in their pod. Serve gives out the lowest that is free, and one again
#: only when no old stream can be left at it; a node has few replicas.
REPLICA_PORTS: Final = (30000, 30255)
GATEWAY_METRICS_PORT: Final = 8405
DASHBOARD_PORT: Final = 8265
RAY_METRICS_PORT: Final = 8080
#: Of the store that the stack makes for the head's state.
STORE_PORT: Final = 6379


def labels(plan: Plan, component: str) -> dict[str, str]:
    """The recommended labels of an object, https://kubernetes.io/docs/reference/labels-annotations-taints/."""
    return {
        "app.kubernetes.io/name": component,
        "app.kubernetes.io/part-of": "modelfleet",
        "app.kubernetes.io/managed-by": "pulumi",
        STACK_LABEL: plan.stack,
    }


def front_priority(plan: Plan) -> str | None:
    """The PriorityClass of head and gateway, `<namespace>-front`; None for who may make only what is in a namespace.

    PriorityClasses belong to the cluster. Who uses an existing namespace is often not its administrator.
    """
    return f"{plan.namespace}-front" if plan.config.kubernetes.create_namespace else None


def placeholder_priority(plan: Plan) -> str:
    """The PriorityClass of pods that keep a node for a worker, `<namespace>-placeholder`."""
    return f"{plan.namespace}-placeholder"


def warm_up_priority(plan: Plan) -> str | None:
    """The PriorityClass of warm-up Jobs, `<namespace>-warm-up`; None as for `front_priority`."""
    return f"{plan.namespace}-warm-up" if plan.config.kubernetes.create_namespace else None


def head_policy(plan: Plan) -> str | None:
    """The admission policy over the head's account, `<namespace>-head`; None as for `front_priority`."""
    return f"{plan.namespace}-head" if plan.config.kubernetes.create_namespace else None


def selector(component: str) -> dict[str, str]:
    """Labels that select a component's pods. Never change them: a Deployment's selector is immutable."""
    return {"app.kubernetes.io/name": component, "app.kubernetes.io/part-of": "modelfleet"}


def dns_name(text: str, *, limit: int = 40) -> str:
    """`meta-llama--Llama-2-7b.chat` as part of an object's name: lower case, `-` for the rest."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:limit].strip("-") or "x"


def digest(value: Mapping[str, Any] | list[Any] | str, length: int = 10) -> str:
    """A short content hash that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]
