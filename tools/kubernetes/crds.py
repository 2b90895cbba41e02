"""Packs the CustomResourceDefinitions of KubeRay and of the AWS Load Balancer Controller for `infra/kubernetes`.

So a stack needs neither Helm nor Go.

It leaves out descriptions, the deprecated v1alpha1 and kinds behind feature gates. 4 MB become 27 kB, which makes a
preview, a run and the API server faster. The schemas are their owners' own. KubeRay is Apache-2.0, as is
the controller, whose two kinds come from a checkout of its tag: its Go module is of no other use here.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import yaml

from modelfleet.infra.kubernetes.versions import KUBERAY, LOAD_BALANCER_CONTROLLER
from tools.kubernetes.control_plane import crd_manifests

FOLDER = Path(__file__).parents[2] / "infra" / "kubernetes" / "crds"
TARGET = FOLDER / f"kuberay-{KUBERAY}.json.gz"
BALANCER = FOLDER / f"aws-load-balancer-controller-{LOAD_BALANCER_CONTROLLER}.json.gz"
BALANCER_KINDS = ("elbv2.k8s.aws_ingressclassparams", "elbv2.k8s.aws_targetgroupbindings")

#: Behind a feature gate that is off. Each CRD costs the API server seconds.
UNUSED = {"RayCronJob"}


def write(target: Path = TARGET) -> Path:
    """Write the file again; the same input gives the same bytes."""
    target.write_bytes(packed())
    return target


def write_balancer(checkout: Path, target: Path = BALANCER) -> Path:
    """Write the controller's file again, from a checkout of kubernetes-sigs/aws-load-balancer-controller."""
    bases = checkout / "config" / "crd" / "bases"
    target.write_bytes(_packed([yaml.safe_load((bases / f"{name}.yaml").read_text()) for name in BALANCER_KINDS]))
    return target


def packed() -> bytes:
    """The content of KubeRay's file."""
    return _packed([crd for crd in crd_manifests() if crd["spec"]["names"]["kind"] not in UNUSED])


def _packed(crds: list[dict[str, Any]]) -> bytes:
    chosen = [_bare(crd) for crd in crds]
    text = json.dumps(chosen, sort_keys=True, separators=(",", ":"))
    return gzip.compress(text.encode(), 9, mtime=0)


def _bare(crd: dict[str, Any]) -> Any:
    crd.pop("status", None)
    crd["metadata"].pop("creationTimestamp", None)
    crd["spec"]["versions"] = [version for version in crd["spec"]["versions"] if version["storage"]]
    return _without_descriptions(crd, names=False)


def _without_descriptions(value: Any, *, names: bool) -> Any:
    """With `names`, the keys of this mapping are property names, and one of them may be `description` itself."""
    if isinstance(value, dict):
        return {
            key: _without_descriptions(item, names=key == "properties" and not names)
            for key, item in value.items()
            if names or key != "description"
        }
    if isinstance(value, list):
        return [_without_descriptions(item, names=False) for item in value]
    return value
