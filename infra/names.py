"""Names that several parts write and read: labels, resources, accounts. One spelling each.

Never change one: what a live cluster has under the old name would not be found under the new one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

#: Label of nodes and objects, tag of AWS resources: the stack that they belong to.
STACK_LABEL: Final = "modelfleet.dev/stack"
#: Label of nodes and tag of node groups: the pool of the stack file, `SYSTEM_POOL` or `MIRROR_POOL`.
POOL_LABEL: Final = "modelfleet.dev/pool"
SYSTEM_POOL: Final = "system"
#: Label of a pool's nodes: how they were bought. Without it the autoscaler would take a reservation's group and one on
#: demand for alike, and spread new nodes over both.
PURCHASE_LABEL: Final = "modelfleet.dev/purchase"
#: The nodes of the mirror Jobs, which exist only while one runs.
MIRROR_POOL: Final = "mirror"
MANAGED_BY_TAG: Final = "modelfleet.dev/managed-by"
#: Label of a pod that waits for a node of an earlier rung, to leave it to a worker: the pool.
PLACEHOLDER_LABEL: Final = "modelfleet.dev/placeholder"
MODEL_LABEL: Final = "modelfleet.dev/model"

#: End of the name of the StorageClass that a stack makes for its own Prometheus.
METRICS_CLASS: Final = "metrics"

#: The resource that the device plugin offers to Kubernetes; also the key of the taint on GPU nodes.
GPU: Final = "nvidia.com/gpu"
#: The node's own disk: logs, layers that containers write, and emptyDirs that are not in memory.
DISK: Final = "ephemeral-storage"
#: Labels of GPU nodes: that they have GPUs, and how many.
GPU_PRESENT_LABEL: Final = "nvidia.com/gpu.present"
GPU_COUNT_LABEL: Final = "nvidia.com/gpu.count"
#: Label of GPU nodes: the accelerator. By it cluster-autoscaler (`aws` provider) knows nodes whose GPUs are not ready.
ACCELERATOR_LABEL: Final = "k8s.amazonaws.com/accelerator"

#: Service accounts with an AWS role. Ray head and workers, in the stack's namespace, read weights and code.
READERS: Final = ("ray-head", "ray-worker")
#: The mirror Job, in a namespace of its own where the stack makes namespaces: writes weights; the only one with the
#: Hugging Face token.
WRITER: Final = "mirror"
#: The warm-up Jobs, beside the mirror Jobs: write sealed compile caches, and nobody else does.
SEALER: Final = "warm-up"
#: Prefix of the stack's bucket below which sealed compile caches are.
SEALS: Final = "seals"
#: Prefix of the stack's bucket below which the records of usage are (`serving/usage_bucket.py`).
USAGE: Final = "usage"
#: cluster-autoscaler, in `kube-system`.
AUTOSCALER: Final = "cluster-autoscaler"
AUTOSCALER_NAMESPACE: Final = "kube-system"
#: The AWS Load Balancer Controller, in the stack's namespace: registers the gateway's pods with the load balancer.
LOAD_BALANCER_ACCOUNT: Final = "load-balancer-controller"

#: What sends the pods' output to CloudWatch Logs, on every node, in `kube-system`.
LOG_COLLECTOR: Final = "log-collector"
LOG_COLLECTOR_NAMESPACE: Final = "kube-system"

#: Where pods find the public half of the key that the stack makes to sign manifests with: base64 of its DER.
MANIFEST_KEY_FOLDER: Final = "/etc/modelfleet/manifest-key"
MANIFEST_KEY_FILE: Final = f"{MANIFEST_KEY_FOLDER}/public"

#: Variable in the environment of what the local target starts, and of its children: whose they are (`mark`).
MARK: Final = "MODELFLEET_PROCESS"
#: File in a local stack's run-time folder that names the process of Ray's last start.
LAST_START: Final = "ray.json"


def local_folder(root: Path, stack: str) -> Path:
    """The run-time folder of a local stack, in the project at `root`: logs, sockets, the gateway's files."""
    return root / ".modelfleet" / "local" / stack


def pods_log_group(cluster: str) -> str:
    """The log group of the pods of a stack whose EKS cluster is called `cluster`, beside that of its control plane."""
    return f"/aws/eks/{cluster}/pods"


def mark(folder: str | Path, role: str) -> str:
    """The mark of the processes that the stack with run-time folder `folder` runs as `role`, such as `ray`."""
    return f"{hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:12]}-{role}"
