"""The RayService: one Ray cluster from the plan's worker groups, one Serve application per model.

`rayClusterConfig` is made from pools, image and rollout only. No model may influence it: KubeRay builds a second
cluster, with all its GPUs, for any change other than replicas, tolerations or a group appended at the end
(kuberay#2274, `GenerateHashWithoutReplicasAndWorkersToDelete` in its `utils/util.go`).
"""

from __future__ import annotations

import copy
from typing import Any, Final

from modelfleet.infra.kubernetes.manifests.manifest_key import key_mounts, key_volumes
from modelfleet.infra.kubernetes.manifests.pods import (
    CAUSE_IN_STATUS,
    RAY_USER,
    WEIGHTS_PATH,
    Manifest,
    container_security,
    environment,
    gb,
    in_front,
    mib,
    millis,
    object_storage,
    pod_security,
    resources,
    system_placement,
    tolerations,
)
from modelfleet.infra.kubernetes.manifests.ray_tls import (
    tls_autoscaler,
    tls_environment,
    tls_first,
    tls_mounts,
    tls_volumes,
)
from modelfleet.infra.kubernetes.manifests.scripts import POLICY_PATH, SCRIPTS_PATH, policy_volume
from modelfleet.infra.kubernetes.names import (
    DASHBOARD_PORT,
    GATEWAY_METRICS_PORT,
    GATEWAY_QUEUES,
    HEAD_ACCOUNT,
    HEAD_STORAGE,
    OWN_STORE,
    RAY_METRICS_PORT,
    RAY_SERVICE,
    REPLICA_HUGGINGFACE,
    REPLICA_PORTS,
    SCRIPTS,
    SERVE_PORT,
    SERVE_SERVICE,
    STORE_PORT,
    WORKER_ACCOUNT,
    digest,
    labels,
)
from modelfleet.infra.kubernetes.text import json_for_yaml, read_json_or_yaml
from modelfleet.infra.names import DISK, GPU, POOL_LABEL, STACK_LABEL
from modelfleet.infra.planning.gap import GRACE_SECONDS, STOP_SECONDS
from modelfleet.infra.planning.mirrors import MODELS_WAIT_S
from modelfleet.infra.planning.nodes import MIB, OBJECT_STORE_MIB
from modelfleet.infra.planning.plan import Plan, WorkerGroup
from modelfleet.serving.config.serve_options import RAY_ENVIRONMENT
from modelfleet.serving.scaling import QUEUES_VARIABLE

#: What the RayService was made from, so that a later run can say what it will do to the cluster.
CLUSTER_ANNOTATION: Final = "modelfleet.dev/cluster"
OBJECT_STORE_BYTES: Final = OBJECT_STORE_MIB * MIB
#: On disk: Ray's session with its logs, which rotate at 512 MB each, and the code of each application.
HEAD_CPU, HEAD_MEMORY, HEAD_DISK = "2", "8Gi", "4Gi"
#: Only Kubernetes knows a pod's own address; the network policy says who may connect.
EVERYWHERE: Final = "0.0.0.0"  # noqa: S104
HUGGINGFACE_PATH: Final = "/etc/modelfleet/huggingface"

#: KubeRay makes a Secret with a random token for each RayCluster, named like it, and puts it into every container of
#: Ray and into its own requests (KubeRay 1.6.2 `reconcileAuthSecret`, `SetContainerTokenAuthEnvVars`,
#: `GetRayDashboardClientFunc`). Ray then asks for it at the dashboard, the agents and every gRPC port. Probes need none
#: (Ray 2.60 `public_exact_paths` in `dashboard/http_server_head.py`, `PUBLIC_EXACT_PATHS` in `http_server_agent.py`).
AUTH: Final = {"mode": "token"}

#: Who makes Ray's pods, as their label says; in earlier releases it said what was true of their RayService.
MADE_BY: Final = {"app.kubernetes.io/managed-by": "kuberay"}
EARLIER: Final = {"app.kubernetes.io/managed-by": "pulumi"}

#: What `rollout` means to KubeRay. Pulumi does `replace`: it deletes the RayService first.
UPGRADE_TYPES: Final = {"surge": "NewCluster", "replace": "None"}

#: Stands in manifests for the address of the store that the stack makes, which is known only when it is made.
STORE_ADDRESS: Final = f"rediss://HEAD-STORAGE:{STORE_PORT}"
#: Where the image has the certificates of public authorities (Debian's and Ubuntu's ca-certificates); Amazon's are
#: among them, and ElastiCache's certificates are Amazon's.
CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
#: How long a worker waits for a head that is gone, in seconds. KubeRay would set 600
#: (1.6.2 `DefaultWorkerRayGcsReconnectTimeoutS`), and a head on a new node may need as long: the node starts, and pulls
#: an image of 10 GB or more.
RECONNECT_SECONDS: Final = 1800
#: The largest value that goes with a call or its answer and not through the nodes' object stores, in bytes. What a
#: replica tells Serve's controller about itself is 111 kB, most of it the pickle of Serve's own request router, and
#: Ray's limit is 100 KiB. A worker may find the next head 20 s late, or later: till then it drops the answer. Ray asks
#: again after 10 and 30 s (ray#56523), and after 30 s Serve's controller ends the replica (Ray 2.60
#: `serve/_private/deployment_state.py`, `_check_startup_replicas`).
INLINE_BYTES: Final = 1 << 20

#: In the background, and not on the hook's own output, or the kubelet would wait for its end.
_FOLLOW: Final = f"python3 {SCRIPTS_PATH}/follow_logs.py </dev/null >/proc/1/fd/1 2>/proc/1/fd/2 &"
FOLLOW_LOGS: Final = {"postStart": {"exec": {"command": ["sh", "-c", _FOLLOW]}}}


def ray_service(plan: Plan, store_address: Any = STORE_ADDRESS) -> Manifest:
    """The RayService of the stack; `store_address` is that of the store that the stack makes, maybe an output."""
    spec: Manifest = {
        "serveConfigV2": serve_config_text(plan.serve_config),
        "upgradeStrategy": {"type": UPGRADE_TYPES[plan.ray_cluster.rollout]},
        "serveService": {"metadata": {"name": SERVE_SERVICE}, "spec": _serve_spec()},
        # KubeRay deletes the old cluster once its last stream must have ended. It does not see whether any is open; the
        # preview says what the wait costs (rollout.py).
        "rayClusterDeletionDelaySeconds": plan.gateway.settings.timeout_s,
        "rayClusterConfig": ray_cluster(plan, store_address),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": RAY_SERVICE,
            "namespace": plan.namespace,
            "labels": labels(plan, "ray"),
            "annotations": {CLUSTER_ANNOTATION: ".".join(cluster_parts(plan))},
        },
        "spec": spec,
    }


def serve_service(plan: Plan) -> Manifest:
    """The addresses of the pods that serve, before there are any.

    KubeRay makes it only when the first models answer, and then the gateway would refuse requests until each cache of
    its name has forgotten that there was none. It takes over one that exists: it has it select the pods of the cluster
    that serves, once all models of that answer (KubeRay 1.6.2 `reconcileServices`). Until then it selects the pods that
    a stack of an earlier release has, whose Service had another name. No pod of this release: KubeRay would take the
    first one for a cluster that is ready (`calculateConditions`).
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVE_SERVICE, "namespace": plan.namespace, "labels": labels(plan, "ray")},
        "spec": {**_serve_spec(), "selector": {"ray.io/serve": "true", **EARLIER}},
    }


def _serve_spec() -> Manifest:
    """Without an address of its own: the gateway wants those of the pods. KubeRay adds the selector."""
    return {"clusterIP": "None", "ports": [{"name": "serve", "port": SERVE_PORT}]}


def cluster_parts(plan: Plan) -> list[str]:
    """A hash of what the whole cluster shares, then one per worker group, of what builds another cluster if it changes.

    KubeRay changes replicas and tolerations in place (`GenerateHashWithoutReplicasAndWorkersToDelete`).
    """
    cluster = copy.deepcopy(ray_cluster(plan))
    groups = cluster.pop("workerGroupSpecs")
    for group in groups:
        for key in ("replicas", "minReplicas", "maxReplicas"):
            del group[key]
        del group["template"]["spec"]["tolerations"]
    return [digest(cluster, 8), *(digest(group, 8) for group in groups)]


def rebuilt_by(live: Manifest, parts: list[str]) -> bool:
    """Whether KubeRay builds another cluster for the `parts` of a plan: not for groups appended at the end."""
    noted = (live["metadata"].get("annotations") or {}).get(CLUSTER_ANNOTATION)
    if noted is None:
        return False
    before: list[str] = noted.split(".")
    return parts[: len(before)] != before


def live_configs(live: Manifest) -> dict[str, Any]:
    """The applications of a RayService, by name."""
    config = read_json_or_yaml(live.get("spec", {}).get("serveConfigV2") or "{}") or {}
    return {one["name"]: one for one in config.get("applications", [])}


def serve_config_text(config: dict[str, Any]) -> str:
    """`serveConfigV2`, which KubeRay reads as YAML; prompt templates can contain anything."""
    return json_for_yaml(config, indent=1)


def ray_cluster(plan: Plan, store_address: Any = STORE_ADDRESS) -> Manifest:
    """`rayClusterConfig`."""
    cluster = plan.ray_cluster
    config: Manifest = {
        "rayVersion": cluster.ray_version,
        "authOptions": AUTH,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": cluster.idle_timeout_s,
            "upscalingMode": "Default",
            "imagePullPolicy": "IfNotPresent",
            "resources": resources("500m", "1Gi"),
            "securityContext": container_security(read_only=False),
            **tls_autoscaler(plan),
        },
        "headGroupSpec": _head(plan),
        "workerGroupSpecs": [_worker_group(plan, group) for group in cluster.worker_groups],
    }
    if plan.head_survives:
        config["gcsFaultToleranceOptions"] = _head_storage(plan, store_address)
    return config


def _head_storage(plan: Plan, store_address: Any) -> Manifest:
    """Where the head keeps its state.

    Without `externalStorageNamespace`: KubeRay then takes the RayCluster's uid, so that the two clusters of a rollout
    do not share their state. When a RayCluster is deleted, KubeRay holds it with a finalizer until a Job has emptied
    its part of the store, for 5 minutes at most. The Job is the head's pod with another command (1.6.2
    controllers/ray/raycluster_controller.go).
    """
    made = plan.head_storage is not None
    # An own Redis may need no password; then nobody makes the Secret.
    secret = {"name": HEAD_STORAGE if made else OWN_STORE, "key": "password", **({} if made else {"optional": True})}
    return {
        "redisAddress": store_address if made else plan.ray_cluster.redis_address,
        "redisPassword": {"valueFrom": {"secretKeyRef": secret}},
    }


def _store_certificates(plan: Plan) -> dict[str, str | None]:
    """Ray verifies a store's certificate only by authorities that it is told (`REDIS_CA_CERT` of its configuration)."""
    address = STORE_ADDRESS if plan.head_storage else plan.ray_cluster.redis_address
    return {"RAY_REDIS_CA_CERT": CERTIFICATES if address and address.startswith("rediss://") else None}


def _inline(plan: Plan) -> dict[str, str | None]:
    """Head and workers talk without their object stores where a head can come back to workers that wait for it."""
    return {"RAY_max_direct_call_object_size": str(INLINE_BYTES) if plan.head_survives else None}


def _head(plan: Plan) -> Manifest:
    metadata = {
        "labels": {**labels(plan, "ray-head"), **MADE_BY},
        # There is only one head: the cluster autoscaler must not move it to save a node.
        "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
    }
    own = {"PYTHONPATH": POLICY_PATH, **_store_certificates(plan), **_inline(plan)}
    container = {
        **_container(plan, "ray-head"),
        "env": environment({**_environment(plan), **own}),
        "resources": resources(HEAD_CPU, HEAD_MEMORY, disk=HEAD_DISK),
        "lifecycle": FOLLOW_LOGS,
        "ports": [
            {"name": "gcs-server", "containerPort": 6379},
            *_ports(dashboard=DASHBOARD_PORT, serve=SERVE_PORT, metrics=RAY_METRICS_PORT),
        ],
    }
    spec = {
        **_pod(plan, HEAD_ACCOUNT, shm_mib=1024),
        **in_front(plan),
        "affinity": system_placement(plan),
        "containers": [container],
    }
    # Serve's controller runs here. A new policy reaches the file, which is no change of the cluster.
    container["volumeMounts"].append({"name": "policy", "mountPath": POLICY_PATH, "readOnly": True})
    spec["volumes"].append(policy_volume())
    return {
        # No replica may run on the head: if the head runs out of memory, the whole cluster fails.
        "resources": {"CPU": "0"},
        "rayStartParams": {"dashboard-host": EVERYWHERE, "object-store-memory": str(OBJECT_STORE_BYTES)},
        "template": {"metadata": metadata, "spec": spec},
    }


def _worker_group(plan: Plan, group: WorkerGroup) -> Manifest:
    grace = plan.grace_s(GRACE_SECONDS)
    # Only where it is not the hook's own: a variable more would rebuild every live cluster.
    own = {
        "MODELFLEET_DRAIN_SECONDS": str(grace - STOP_SECONDS) if grace < GRACE_SECONDS else None,
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_SECONDS) if plan.head_survives else None,
    }
    container = {
        **_container(plan, "ray-worker"),
        "env": environment({**_environment(plan), **own, **_inline(plan)}),
        "resources": whole_node(group),
        "ports": _ports(serve=SERVE_PORT, metrics=RAY_METRICS_PORT),
        "lifecycle": {
            **FOLLOW_LOGS,
            "preStop": {"exec": {"command": ["python3", f"{SCRIPTS_PATH}/drain.py"]}},
        },
    }
    spec = {
        **_pod(plan, WORKER_ACCOUNT, shm_mib=group.node.shm_mib),
        "nodeSelector": _own_labels(group),
        "tolerations": tolerations(group.taints),
        "terminationGracePeriodSeconds": grace,
        "containers": [container],
    }
    return {
        "groupName": group.name,
        "replicas": group.min_replicas,
        "minReplicas": group.min_replicas,
        "maxReplicas": group.max_replicas,
        "resources": {name: f"{value:g}" for name, value in sorted(group.ray_resources.items())},
        "rayStartParams": {"object-store-memory": str(OBJECT_STORE_BYTES)},
        "template": {
            "metadata": {"labels": {**labels(plan, "ray-worker"), **MADE_BY, **_own_labels(group)}},
            "spec": spec,
        },
    }


def whole_node(group: WorkerGroup) -> Manifest:
    """All that a node offers, so that the scheduler puts one worker on a node and the node autoscaler buys one each."""
    memory = mib(group.node.memory_mib)
    gpus = {GPU: str(group.node.gpus)} if group.node.gpus else {}
    disk = {DISK: gb(group.node.disk_gb)} if group.node.disk_gb else {}
    return {
        "requests": {"cpu": millis(group.node.cpu_millis), **disk, "memory": memory, **gpus},
        "limits": {"memory": memory, **gpus},
    }


def _ports(**ports: int) -> list[Manifest]:
    return [{"name": name, "containerPort": port} for name, port in ports.items()]


def _own_labels(group: WorkerGroup) -> dict[str, str]:
    """Stack and pool, the two labels that users of an existing cluster put on nodes; GPUs are requested by number."""
    return {key: group.labels[key] for key in (POOL_LABEL, STACK_LABEL)}


def _container(plan: Plan, name: str) -> Manifest:
    return {
        "name": name,
        "image": plan.ray_cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "env": environment(_environment(plan)),
        "envFrom": object_storage(),
        **CAUSE_IN_STATUS,
        "securityContext": container_security(read_only=False),
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  a volume of this pod alone
            {"name": "weights", "mountPath": WEIGHTS_PATH},
            {"name": "scripts", "mountPath": SCRIPTS_PATH, "readOnly": True},
            {"name": "huggingface", "mountPath": HUGGINGFACE_PATH, "readOnly": True},
            *tls_mounts(plan),
            *key_mounts(plan),
        ],
    }


def _environment(plan: Plan) -> dict[str, str | None]:
    """The same on head and workers; nothing of a model and nothing secret."""
    return {
        # With it replicas also listen themselves, where the gateway finds them.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(REPLICA_PORTS[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(REPLICA_PORTS[1]),
        QUEUES_VARIABLE: f"{GATEWAY_QUEUES}.{plan.namespace}.svc.cluster.local:{GATEWAY_METRICS_PORT}",
        # Serve starts another HAProxy when a model or a replica comes or goes. By default it ends the old one after
        # 120 s, with the streams that it still has (Ray 2.60 `serve/_private/constants.py`).
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(plan.ray_cluster.longest_stream_s),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(plan.ray_cluster.longest_stream_s),
        "RAY_USAGE_STATS_ENABLED": "0",
        **RAY_ENVIRONMENT,
        "VLLM_NO_USAGE_STATS": "1",
        "AWS_REGION": plan.region,
        "MODELFLEET_MODEL_CACHE": f"{WEIGHTS_PATH}/models",
        "MODELFLEET_MIRROR_WAIT_S": str(MODELS_WAIT_S),
        "HF_HOME": f"{WEIGHTS_PATH}/huggingface",
        # A file, because the kubelet updates it when the Secret changes; a variable stays until the pod ends.
        "HF_TOKEN_PATH": f"{HUGGINGFACE_PATH}/token",
        "VLLM_CACHE_ROOT": f"{WEIGHTS_PATH}/vllm",
        **tls_environment(plan),
    }


def _pod(plan: Plan, account: str, *, shm_mib: int) -> Manifest:
    return {
        "serviceAccountName": account,
        "automountServiceAccountToken": account == HEAD_ACCOUNT,
        "enableServiceLinks": False,
        "securityContext": pod_security(RAY_USER),
        **tls_first(plan),
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": mib(shm_mib)}},
            # On nodes whose NVMe disks form a RAID 0, the kubelet's folder, and so this volume, is on them.
            {"name": "weights", "emptyDir": {}},
            {"name": "scripts", "configMap": {"name": SCRIPTS}},
            {"name": "huggingface", "secret": {"secretName": REPLICA_HUGGINGFACE, "optional": True}},
            *tls_volumes(plan),
            *key_volumes(plan),
        ],
    }
