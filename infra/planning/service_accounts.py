"""Kubernetes service accounts that AWS roles are tied to: one name, used by the AWS and the Kubernetes half."""

from __future__ import annotations

from typing import Final

#: Ray head and workers, in the stack's namespace: they read weights and code.
READERS: Final = ("ray-head", "ray-worker")
#: The mirror Job, in the stack's namespace: writes weights; the only one with the Hugging Face token.
WRITER: Final = "mirror"
#: cluster-autoscaler, in `kube-system`.
AUTOSCALER: Final = "cluster-autoscaler"
AUTOSCALER_NAMESPACE: Final = "kube-system"
