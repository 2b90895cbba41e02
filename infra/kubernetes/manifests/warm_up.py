"""One Job per sealed compile cache, named by its key: a new image or other arguments make another.

A Job takes a whole node of its model's pool, as a Ray worker does, so that it measures and compiles on that card alone.
It is in the namespace of the mirror Jobs: the Ray head may make pods in its own, and could give one this account.
"""

from __future__ import annotations

import json
from typing import Final

from modelfleet.infra.kubernetes.manifests.manifest_key import key_mounts, key_volumes
from modelfleet.infra.kubernetes.manifests.pods import (
    CAUSE_IN_STATUS,
    RAY_USER,
    WEIGHTS_PATH,
    Manifest,
    container_security,
    environment,
    mib,
    object_storage,
    pod_security,
    tolerations,
)
from modelfleet.infra.kubernetes.manifests.ray import whole_node
from modelfleet.infra.kubernetes.manifests.scripts import SCRIPTS_PATH, code_variable, job_scripts
from modelfleet.infra.kubernetes.names import (
    WARM_UP_ACCOUNT,
    digest,
    dns_name,
    labels,
    warm_up_priority,
)
from modelfleet.infra.names import MODEL_LABEL, POOL_LABEL, STACK_LABEL
from modelfleet.infra.planning.plan import ModelPlan, Plan
from modelfleet.serving.config.serve_options import RAY_ENVIRONMENT

#: The least that cluster-autoscaler still buys nodes for (`--expendable-pods-priority-cutoff`); any worker takes the
#: node from it.
PRIORITY: Final = -10
RETRIES: Final = 2
#: From its creation, waiting for a node included: after that the seal is given up, which costs time only.
MOST_SECONDS: Final = 4 * 3600
#: The models are served before `up` makes a Job, so their weights are there; otherwise the node must not wait for long.
MIRROR_WAIT_S: Final = 900


def warmed(plan: Plan) -> list[ModelPlan]:
    """The models whose compile cache a Job seals."""
    return [model for model in plan.models if model.seal is not None and model.seal.has_job]


def warm_up_job_name(plan: Plan, model: ModelPlan) -> str:
    """`warm-up-<model>-<hash>`, by where the seal is, whose last part is its key."""
    content = [plan.bucket.name, model.seal.prefix if model.seal else None]
    return f"warm-up-{dns_name(model.slug)}-{digest(content)}"


def warm_up_priority_class(plan: Plan) -> list[Manifest]:
    """The class by which a warm-up Job leaves its node to the first Ray worker that wants it; none without a Job."""
    name = warm_up_priority(plan)
    if name is None or not plan.sealed_pools:
        return []
    return [
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name, "labels": labels(plan, "priority")},
            "value": PRIORITY,
            "preemptionPolicy": "Never",
            "description": "Warm-up Jobs of a modelfleet stack, which leave their node to the first worker.",
        }
    ]


def warm_up_job(plan: Plan, model: ModelPlan) -> Manifest:
    """The Job of one seal. A node that goes, or that a worker takes, is no failure of it."""
    own = {**labels(plan, WARM_UP_ACCOUNT), MODEL_LABEL: dns_name(model.slug, limit=63)}
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": warm_up_job_name(plan, model), "namespace": plan.mirror_namespace, "labels": own},
        "spec": {
            "backoffLimit": RETRIES,
            "activeDeadlineSeconds": MOST_SECONDS,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [disrupted]},
            "template": {"metadata": {"labels": own}, "spec": _pod(plan, model)},
        },
    }


def _pod(plan: Plan, model: ModelPlan) -> Manifest:
    group = next(one for one in plan.ray_cluster.worker_groups if one.pool == model.pool)
    # A seal is of one card: that of the pool, and not one that it falls back on.
    card = next(one for one in plan.pools if one.name == model.pool).own_card
    priority = warm_up_priority(plan)
    container = {
        "name": "warm-up",
        "image": plan.ray_cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", f"{SCRIPTS_PATH}/seal_job.py"],
        "env": [*environment(_environment(plan, model)), code_variable()],
        "envFrom": object_storage(),
        "resources": whole_node(group),
        **CAUSE_IN_STATUS,
        # As a Ray worker's: compilers write where they like.
        "securityContext": container_security(read_only=False),
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  a volume of this pod alone
            {"name": "weights", "mountPath": WEIGHTS_PATH},
            {"name": "scripts", "mountPath": SCRIPTS_PATH, "readOnly": True},
            *key_mounts(plan),
        ],
    }
    return {
        "serviceAccountName": WARM_UP_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "securityContext": pod_security(RAY_USER),
        **({"priorityClassName": priority} if priority else {}),
        "nodeSelector": {**{key: group.labels[key] for key in (POOL_LABEL, STACK_LABEL)}, **card},
        "tolerations": tolerations(group.taints),
        "containers": [container],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": mib(group.node.shm_mib)}},
            {"name": "weights", "emptyDir": {}},
            job_scripts(plan),
            *key_volumes(plan),
        ],
    }


def _environment(plan: Plan, model: ModelPlan) -> dict[str, str | None]:
    """What decides how a replica compiles, with the same paths: compilers write them into their files."""
    return {
        # Where traces go changes no compiled code.
        "ARGS": json.dumps(
            {key: one for key, one in model.application.args.items() if key != "traces"}, sort_keys=True
        ),
        **RAY_ENVIRONMENT,
        "VLLM_NO_USAGE_STATS": "1",
        "AWS_REGION": plan.region,
        "MODELFLEET_MODEL_CACHE": f"{WEIGHTS_PATH}/models",
        "MODELFLEET_MIRROR_WAIT_S": str(MIRROR_WAIT_S),
        "HF_HOME": f"{WEIGHTS_PATH}/huggingface",
        "VLLM_CACHE_ROOT": f"{WEIGHTS_PATH}/vllm",
        "PYTHONUNBUFFERED": "1",
    }
