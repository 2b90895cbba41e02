"""A real Kubernetes control plane on this machine without containers: etcd, API server, scheduler, kwok, KubeRay.

The real operator makes the pods and the real scheduler places them; kwok plays the kubelets, so no container runs.
"""
