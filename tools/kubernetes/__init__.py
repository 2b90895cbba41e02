"""A real Kubernetes control plane on this machine without containers: etcd, API server, scheduler, kwok, KubeRay.

Pods are scheduled by the real scheduler and made by the real operator; kwok plays the kubelets, so no container runs.
"""
