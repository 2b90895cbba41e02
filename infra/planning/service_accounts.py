"""Kubernetes service accounts that AWS roles are tied to: one name, used by the AWS and the Kubernetes half."""

from __future__ import annotations

#: Ray head and workers, in the stack's namespace: reads weights and code.
REPLICA = "modelfleet-replica"
#: The mirror Job, in the stack's namespace: writes weights; the only one with the Hugging Face token.
MIRROR = "modelfleet-mirror"
#: cluster-autoscaler, in `kube-system`.
AUTOSCALER = "cluster-autoscaler"
AUTOSCALER_NAMESPACE = "kube-system"
