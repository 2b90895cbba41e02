"""Packs KubeRay's CustomResourceDefinitions for `infra/kubernetes`, so a stack needs neither Helm nor Go.

It leaves out descriptions, the deprecated v1alpha1 and kinds behind feature gates. 4 MB become 27 kB, which makes a
preview, a run and the API server faster. The schemas are KubeRay's own. KubeRay is Apache-2.0.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from modelfleet.infra.kubernetes.versions import KUBERAY
from tools.kubernetes.control_plane import crd_manifests

TARGET = Path(__file__).parents[2] / "infra" / "kubernetes" / "crds" / f"kuberay-{KUBERAY}.json.gz"

#: Behind a feature gate that is off. Each CRD costs the API server seconds.
UNUSED = {"RayCronJob"}


def write(target: Path = TARGET) -> Path:
    """Write the file again; the same input gives the same bytes."""
    target.write_bytes(packed())
    return target


def packed() -> bytes:
    """The file's content."""
    chosen = [_bare(crd) for crd in crd_manifests() if crd["spec"]["names"]["kind"] not in UNUSED]
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
