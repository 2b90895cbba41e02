"""The files of a node's programs, as text: pure functions of its settings."""

from __future__ import annotations

import json
from typing import Any

from tools.kubernetes.node.machine import NETWORK_PLUGINS
from tools.kubernetes.node.settings import DNS, PODS, NodeSettings

#: Where containerd looks for the pods' network, in the node's own /run.
NETWORKS = "/run/cni/net.d"
SOCKET = "/run/containerd/containerd.sock"


def kubeconfig(settings: NodeSettings, token: str) -> str:
    """A kubeconfig for a program of the node."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "own",
                    "cluster": {"server": settings.server, "certificate-authority": settings.certificate},
                }
            ],
            "users": [{"name": "own", "user": {"token": token}}],
            "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own"}}],
            "current-context": "own",
        }
    )


def kubelet(settings: NodeSettings) -> str:
    """The kubelet's configuration (kubelet.config.k8s.io/v1beta1)."""
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,  # from 1.35 on it refuses cgroup v1 by default
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": settings.cgroup,
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "resolvConf": f"{settings.folder}/resolv.conf",
            "failSwapOn": False,
            # Only the cluster's own network namespace reaches its port.
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            # The disk is the machine's: what others keep there is no reason to evict pods.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "2%", "imagefs.available": "2%"},
            "evictionPressureTransitionPeriod": "10s",  # what was full and is not takes pods again; 5 min by default
            "imageGCHighThresholdPercent": 100,  # no registry brings an image back
        }
    )


def kube_proxy(settings: NodeSettings) -> str:
    """kube-proxy's configuration (kubeproxy.config.k8s.io/v1alpha1)."""
    untouched = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": PODS,
            "hostnameOverride": settings.name,
            "clientConnection": {"kubeconfig": f"{settings.folder}/proxy.kubeconfig"},
            "conntrack": untouched,  # limits of the whole machine
        }
    )


def network(settings: NodeSettings) -> str:
    """The pods' network for the Container Network Interface: one cable per pod, no translation of addresses."""
    addresses = {"type": "host-local", "ranges": [[{"subnet": settings.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}
    return json.dumps(
        {
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {"type": "ptp", "ipMasq": False, "ipam": addresses},
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
    )


def containerd(settings: NodeSettings) -> str:
    """containerd's configuration (version 2: what 1.6 reads, and later versions still do)."""
    return f"""version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
restrict_oom_score_adj = true  # without CAP_SYS_RESOURCE a negative oom_score_adj is refused
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{NETWORK_PLUGINS}"
conf_dir = "{NETWORKS}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "{settings.folder}/base.json"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.internal.v1.opt"]
path = "/run/containerd-opt"
"""


def base_runtime_spec(settings: NodeSettings, default: dict[str, Any]) -> str:
    """The specification that every container starts from: containerd's default, and the node's own mounts."""
    mounts = [
        {"destination": target, "type": "bind", "source": source, "options": ["rbind", "ro"]}
        for source, target in settings.mounts
    ]
    process = {key: value for key, value in default["process"].items() if key != "rlimits"}  # CAP_SYS_RESOURCE again
    return json.dumps({**default, "process": process, "mounts": [*default["mounts"], *mounts]})
