"""One Job per mirrored model. A hash of its content is in its name: a new source, revision or target runs again."""

from __future__ import annotations

from modelfleet.infra.kubernetes.manifests.manifest_key import job_environment
from modelfleet.infra.kubernetes.manifests.pods import (
    CAUSE_IN_STATUS,
    RAY_USER,
    WEIGHTS_PATH,
    Manifest,
    container_security,
    environment,
    millis,
    object_storage,
    pod_security,
    resources,
    system_placement,
    tolerations,
)
from modelfleet.infra.kubernetes.manifests.scripts import SCRIPTS_PATH, code_variable, job_scripts
from modelfleet.infra.kubernetes.names import (
    HUGGINGFACE,
    MIRROR_ACCOUNT,
    digest,
    dns_name,
    labels,
)
from modelfleet.infra.names import MODEL_LABEL
from modelfleet.infra.planning.plan import MirrorPlan, ModelPlan, Plan

RETRIES = 6
#: On disk: the serving code and logs; weights go from the Hub straight into the bucket.
DISK = "1Gi"
#: Three parts of 32 MiB for each of the eight files that are on their way, and Python.
MEMORY, MOST_MEMORY = "2Gi", "4Gi"


def mirrored(plan: Plan) -> list[tuple[ModelPlan, MirrorPlan]]:
    """What the stack copies, each with the first model that needs it: weights, then drafts, tokenizers and adapters."""
    found: dict[str, tuple[ModelPlan, MirrorPlan]] = {}
    for model in plan.models:
        for mirror in (model.mirror, *model.others):
            if mirror.prefix is not None:
                found.setdefault(mirror.prefix, (model, mirror))
    return list(found.values())


def job_name(plan: Plan, model: ModelPlan, mirror: MirrorPlan | None = None) -> str:
    """`mirror-<model>-<content hash>`; `mirror` is that of the model's weights by default."""
    mirror = mirror or model.mirror
    content = [mirror.source, mirror.revision, plan.bucket.name, mirror.prefix]
    content += [mirror.signer.fingerprint] if mirror.signer else []
    key = plan.manifest_key
    content += [key.kms, key.public] if key else []
    # A manifest says who its signer is since Jobs have this name; with a key its signature always said it.
    content += ["manifest names the signer"] if mirror.signer and not key else []
    return f"mirror-{dns_name(model.slug)}-{digest(content)}"


def mirror_job(plan: Plan, model: ModelPlan, mirror: MirrorPlan | None = None) -> Manifest:
    """The Job of one copy, on a node of its own or an untainted one, so that no GPU waits for a download."""
    mirror = mirror or model.mirror
    name = job_name(plan, model, mirror)
    own = {**labels(plan, MIRROR_ACCOUNT), MODEL_LABEL: dns_name(model.slug, limit=63)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": plan.mirror_namespace, "labels": own},
        "spec": {
            "backoffLimit": RETRIES,
            "podReplacementPolicy": "Failed",
            "template": {"metadata": {"labels": own, "annotations": _UNMOVED}, "spec": _pod(plan, model, mirror)},
        },
    }


#: The node autoscaler must not move a copy that runs for an hour to save a node.
_UNMOVED = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}


def _placement(plan: Plan) -> Manifest:
    """The nodes that the stack makes for copies; on a cluster that is not ours, any untainted node."""
    pool = plan.copies.pool
    if pool is None:
        return {"affinity": system_placement(plan)}
    return {"nodeSelector": dict(pool.labels), "tolerations": tolerations(pool.taints)}


def _pod(plan: Plan, model: ModelPlan, mirror: MirrorPlan) -> Manifest:
    key, signer = plan.manifest_key, mirror.signer
    values = environment(
        {
            "SOURCE": mirror.source,
            "REVISION": mirror.revision,
            "KIND": None if mirror.kind == "model" else mirror.kind,
            "MIRROR": f"s3://{plan.bucket.name}/{mirror.prefix}",
            "MODEL_ID": model.model_id,
            "MANIFEST_KEY": key.kms if key else None,
            # A key that the stack makes is known later (`job_environment`).
            "MANIFEST_PUBLIC_KEY": key.public if key and not key.made else None,
            "SIGNER_KEY": signer.public_key if signer else None,
            "SIGNER_CERTIFICATES": signer.certificates if signer else None,
            "AWS_REGION": plan.region,
            "HF_HOME": f"{WEIGHTS_PATH}/huggingface",
            "HOME": WEIGHTS_PATH,
            "PYTHONUNBUFFERED": "1",
        }
    )
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": HUGGINGFACE, "key": "token", "optional": True}}}
    container = {
        "name": "mirror",
        "image": plan.copies.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", f"{SCRIPTS_PATH}/mirror_job.py"],
        "env": [*values, *job_environment(plan), code_variable(), token],
        "envFrom": object_storage(),
        "resources": resources(millis(plan.copies.job_cpu_millis), MEMORY, disk=DISK, limit_memory=MOST_MEMORY),
        **CAUSE_IN_STATUS,
        "securityContext": container_security(read_only=True),
        "volumeMounts": [
            {"name": "scratch", "mountPath": WEIGHTS_PATH},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  a volume of this pod alone
            {"name": "scripts", "mountPath": SCRIPTS_PATH, "readOnly": True},
        ],
    }
    return {
        "serviceAccountName": MIRROR_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # Each try is a pod, and those that failed stay with their logs: with OnFailure the last one is deleted.
        "restartPolicy": "Never",
        "securityContext": pod_security(RAY_USER),
        **_placement(plan),
        "containers": [container],
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": DISK}},
            {"name": "tmp", "emptyDir": {"sizeLimit": DISK}},
            job_scripts(plan),
        ],
    }
