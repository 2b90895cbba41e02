"""ConfigMaps: the small programs that pods run next to Ray, and where the serving code is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.names import MIRROR_SCRIPTS, SCRIPTS, SERVING_CODE, labels
from modelfleet.infra.planning.plan import Plan
from modelfleet.serving import scaling
from modelfleet.serving.config.serve_options import POLICY

SCRIPTS_PATH: Final = "/etc/modelfleet/scripts"
FOLDER: Final = Path(__file__).parent.parent / "scripts"
#: How log lines become objects, beside every program that writes some; and the file that says whether they should.
JSON_LINES: Final = "json_lines.py"
LOG_FORMAT: Final = "log_format"
OF_RAY: Final = ("certificate.py", "drain.py", "follow_logs.py", JSON_LINES)
#: The scaling policy, which Serve's controller imports by `POLICY`'s name for it, on the head, where none of our code
#: is. A folder without `__init__.py` hides no package of the same name: the one in an application's code comes first.
POLICY_PATH: Final = "/etc/modelfleet/policy"
POLICY_FILE: Final = "scaling.py"
OF_MIRROR: Final = ("mirror_job.py", JSON_LINES)
#: It loads the code as the mirror Jobs' program does.
OF_WARM_UP: Final = ("seal_job.py",)


def scripts(plan: Plan) -> Manifest:
    """The programs beside Ray, and the mirror Jobs' too where these run in the same namespace."""
    names = OF_RAY if plan.own_mirror_namespace else (*OF_RAY, *_of_jobs(plan))
    policy = {POLICY_FILE: Path(scaling.__file__).read_text()}
    return _config(plan, SCRIPTS, plan.namespace, {**_texts(plan, names), **policy})


def policy_volume() -> Manifest:
    """The volume `policy` for `POLICY_PATH`, in which Python finds `POLICY`'s module."""
    module = POLICY.partition(":")[0].replace(".", "/")
    items = [{"key": POLICY_FILE, "path": f"{module}.py"}]
    return {"name": "policy", "configMap": {"name": SCRIPTS, "items": items}}


def mirror_scripts(plan: Plan) -> list[Manifest]:
    """The mirror Jobs' program, in a namespace of their own."""
    if not plan.own_mirror_namespace:
        return []
    return [_config(plan, MIRROR_SCRIPTS, plan.mirror_namespace, _texts(plan, _of_jobs(plan)))]


def _of_jobs(plan: Plan) -> tuple[str, ...]:
    return (*OF_MIRROR, *OF_WARM_UP) if plan.sealed_pools else OF_MIRROR


def _texts(plan: Plan, names: Iterable[str]) -> dict[str, str]:
    """The programs, and how their lines look: a file that pods read anew, so that nothing restarts for it."""
    texts = {name: (FOLDER / name).read_text() for name in names}
    return texts if plan.logs == "text" else {**texts, LOG_FORMAT: f"{plan.logs}\n"}


def serving_code(plan: Plan) -> Manifest:
    """Where mirror Jobs find the serving package: in its own ConfigMap, so that new code leaves their specs alone."""
    return _config(plan, SERVING_CODE, plan.mirror_namespace, {"uri": f"s3://{plan.bucket.name}/{plan.code.key}"})


def code_variable() -> Manifest:
    """The variable by which a Job's program finds the serving package (`serving_code`)."""
    return {"name": "CODE", "valueFrom": {"configMapKeyRef": {"name": SERVING_CODE, "key": "uri"}}}


def job_scripts(plan: Plan) -> Manifest:
    """The volume `scripts` of a Job in the mirror Jobs' namespace, for `SCRIPTS_PATH`."""
    return {"name": "scripts", "configMap": {"name": MIRROR_SCRIPTS if plan.own_mirror_namespace else SCRIPTS}}


def _config(plan: Plan, name: str, namespace: str, data: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": labels(plan, name)},
        "data": data,
    }
