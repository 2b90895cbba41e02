"""ConfigMaps: the small programs that pods run next to Ray, and where the serving code is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.names import SCRIPTS, SERVING_CODE, labels
from modelfleet.infra.planning.plan import Plan

SCRIPTS_PATH: Final = "/etc/modelfleet/scripts"
FOLDER: Final = Path(__file__).parent.parent / "scripts"
NAMES: Final = ("certificate.py", "drain.py", "follow_logs.py", "mirror_job.py")


def scripts(plan: Plan) -> Manifest:
    """The programs."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": SCRIPTS, "namespace": plan.namespace, "labels": labels(plan, SCRIPTS)},
        "data": {name: (FOLDER / name).read_text() for name in NAMES},
    }


def serving_code(plan: Plan) -> Manifest:
    """Where mirror Jobs find the serving package: in its own ConfigMap, so that new code leaves their specs alone."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": SERVING_CODE, "namespace": plan.namespace, "labels": labels(plan, SERVING_CODE)},
        "data": {"uri": f"s3://{plan.bucket.name}/{plan.code.key}"},
    }
