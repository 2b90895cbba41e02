"""What the EKS NVIDIA image lacks: the device plugin, without which a node offers no GPUs, and the DCGM exporter.

Both need the host (device files, kubelet sockets), so they live in kube-system, which has no Pod Security level.
"""

from __future__ import annotations

from typing import Final

from modelfleet.infra.catalog.images import reference
from modelfleet.infra.kubernetes.manifests.pods import Manifest, resources
from modelfleet.infra.kubernetes.names import labels, selector
from modelfleet.infra.names import GPU, GPU_PRESENT_LABEL, STACK_LABEL
from modelfleet.infra.planning.plan import Plan

NAMESPACE: Final = "kube-system"
DEVICE_PLUGIN: Final = "nvidia-device-plugin"
DCGM_EXPORTER: Final = "dcgm-exporter"


def device_plugin(plan: Plan) -> Manifest:
    """A DaemonSet that offers GPUs to the kubelet of each node that is labelled as a GPU node."""
    container = {
        "name": DEVICE_PLUGIN,
        "image": reference(DEVICE_PLUGIN, registry=plan.config.image_registry),
        # PASS_DEVICE_SPECS puts a container's GPUs into its cgroup. Without it the container loses them when systemd
        # reloads its units ("Failed to initialize NVML: Unknown Error", NVIDIA/nvidia-docker#1671).
        "env": [{"name": "FAIL_ON_INIT_ERROR", "value": "false"}, {"name": "PASS_DEVICE_SPECS", "value": "true"}],
        "resources": resources("50m", "100Mi"),
        # Only a privileged plugin sees the device files that it then passes. So is NVIDIA's manifest with this flag.
        # https://github.com/NVIDIA/k8s-device-plugin/tree/main/deployments/static (compat-with-cpumanager)
        "securityContext": {"privileged": True},
        "volumeMounts": [{"name": "device-plugins", "mountPath": "/var/lib/kubelet/device-plugins"}],
    }
    volume = {"name": "device-plugins", "hostPath": {"path": "/var/lib/kubelet/device-plugins"}}
    return _daemon_set(plan, DEVICE_PLUGIN, container, volume)


def dcgm_exporter(plan: Plan) -> Manifest:
    """GPU metrics for Prometheus."""
    container = {
        "name": DCGM_EXPORTER,
        "image": reference(DCGM_EXPORTER, registry=plan.config.image_registry),
        "env": [
            {"name": "DCGM_EXPORTER_LISTEN", "value": ":9400"},
            {"name": "DCGM_EXPORTER_KUBERNETES", "value": "true"},
            # Only with this does a container without an assigned GPU see all of them.
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"},
        ],
        "ports": [{"name": "metrics", "containerPort": 9400}],
        "resources": resources("100m", "256Mi", limit_memory="512Mi"),
        "securityContext": {"runAsNonRoot": False, "runAsUser": 0, "capabilities": {"add": ["SYS_ADMIN"]}},
        "volumeMounts": [{"name": "pod-resources", "mountPath": "/var/lib/kubelet/pod-resources", "readOnly": True}],
    }
    volume = {"name": "pod-resources", "hostPath": {"path": "/var/lib/kubelet/pod-resources"}}
    daemon_set = _daemon_set(plan, DCGM_EXPORTER, container, volume)
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": "9400"}
    daemon_set["spec"]["template"]["metadata"]["annotations"] = annotations
    return daemon_set


def _daemon_set(plan: Plan, name: str, container: Manifest, volume: Manifest) -> Manifest:
    pod = {
        "priorityClassName": "system-node-critical",
        "automountServiceAccountToken": False,
        "nodeSelector": {GPU_PRESENT_LABEL: "true", STACK_LABEL: plan.stack},
        "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        "volumes": [volume],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels(plan, name)},
        "spec": {
            "selector": {"matchLabels": selector(name)},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "50%"}},
            "template": {"metadata": {"labels": labels(plan, name)}, "spec": pod},
        },
    }
