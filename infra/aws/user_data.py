"""User data of a node: a nodeadm `NodeConfig` in the MIME form that EKS merges its own part into."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

BOUNDARY = "//modelfleet//"

#: NVMe instance store becomes one striped volume under kubelet, containerd and pod logs, so that images and
#: `emptyDir` weights are on it. A type without NVMe starts as well.
#: https://github.com/awslabs/amazon-eks-ami nodeadm/doc/api.md (LocalStorageOptions)
LOCAL_STORAGE = {"strategy": "RAID0", "mountPath": "/mnt/k8s-disks"}
#: Images are pulled in parallel parts (SOCI), which needs a root volume of 600 MiB/s or NVMe. nodeadm/doc/examples.md
FEATURE_GATES = {"FastImagePull": True}


def node_config(*, gpu: bool) -> dict[str, Any]:
    """Our part of nodeadm's configuration; EKS adds the cluster's."""
    spec: dict[str, Any] = {"instance": {"localStorage": LOCAL_STORAGE}}
    if gpu:
        spec["featureGates"] = FEATURE_GATES
    return {"apiVersion": "node.eks.aws/v1alpha1", "kind": "NodeConfig", "spec": spec}


def user_data(config: Mapping[str, Any]) -> str:
    """Base64 of a MIME multipart document with one `application/node.eks.aws` part (JSON is YAML)."""
    lines = [
        "MIME-Version: 1.0",
        f'Content-Type: multipart/mixed; boundary="{BOUNDARY}"',
        "",
        f"--{BOUNDARY}",
        "Content-Type: application/node.eks.aws",
        "",
        json.dumps(config, indent=2, sort_keys=True),
        "",
        f"--{BOUNDARY}--",
        "",
    ]
    return base64.b64encode("\n".join(lines).encode()).decode()
