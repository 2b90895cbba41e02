"""The tools that the other tests of this folder rely on."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelfleet.infra.kubernetes.api import ApiError
from modelfleet.infra.kubernetes.manifests.everything import warm_ups
from modelfleet.infra.kubernetes.manifests.operator import CRDS_FILE
from modelfleet.infra.kubernetes.manifests.ray import ray_service
from tests.cluster.conftest import MANAGER, wait_for
from tests.cluster.fleet import five_models, model, planned
from tools.kubernetes.control_plane import ControlPlane
from tools.kubernetes.crds import packed

pytestmark = pytest.mark.slow

STARTER = """
import json, sys, time
from tools.kubernetes.control_plane import ControlPlane
plane = ControlPlane()
plane.start()
print(json.dumps(plane.pids()), flush=True)
time.sleep(600)
"""


def test_the_packed_definitions_are_those_of_the_pinned_operator(cluster: ControlPlane) -> None:
    assert json.loads(gzip.decompress(packed())) == json.loads(gzip.decompress(CRDS_FILE.read_bytes()))


def test_a_killed_starter_leaves_no_process(cluster: ControlPlane) -> None:
    root = Path(__file__).parents[2]
    starter = subprocess.Popen([sys.executable, "-c", STARTER], cwd=root, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pids = json.loads(starter.stdout.readline())
    assert set(pids) == {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"}
    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    wait_for("all to end", lambda: not [p for p in pids.values() if Path(f"/proc/{p}/exe").exists()], seconds=60)


def test_an_unknown_field_is_refused_by_the_server(cluster: ControlPlane) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "default"}, "datum": {}}
    with pytest.raises(ApiError, match="datum"):
        cluster.api.apply(config, manager=MANAGER, dry_run=True)


def test_a_kind_that_the_cluster_lacks_is_named(cluster: ControlPlane) -> None:
    with pytest.raises(ApiError, match=r"no Gateway in gateway\.networking\.k8s\.io/v1"):
        cluster.api.list("gateway.networking.k8s.io/v1", "Gateway")


def test_text_of_any_script_survives_an_apply(cluster: ControlPlane) -> None:
    text = "on: 1e3\t\u2028\x85\x7f 😀 \ufeff $X '\"\\"
    meta = {"name": "text", "namespace": "default"}
    cluster.api.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"a": text}}, manager=MANAGER)
    live = cluster.api.get("v1", "ConfigMap", "text", "default")
    assert live is not None and live["data"]["a"] == text


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="as-it-is"),
        pytest.param({"redisAddress": "redis.databases.svc:6379"}, id="redis"),
        pytest.param({"rollout": "replace"}, id="replace"),
        pytest.param({"rollout": "incremental"}, id="incremental"),
    ],
)
def test_every_form_of_the_ray_service_is_taken_by_the_definitions_of_the_pinned_operator(
    cluster: ControlPlane, tmp_path: Path, settings: dict[str, str]
) -> None:
    """The API server's own check, which also refuses fields that it does not know."""
    plan = planned(tmp_path, five_models(), kubernetes={"namespace": "default", **settings})
    taken = cluster.api.apply(ray_service(plan), manager=MANAGER, dry_run=True)
    config = taken["spec"]["rayClusterConfig"]
    redis = config.get("gcsFaultToleranceOptions", {})
    assert redis.get("redisAddress") == settings.get("redisAddress")
    if redis:
        password = redis["redisPassword"]["valueFrom"]["secretKeyRef"]
        assert password == {"name": "redis", "key": "password", "optional": True}, "a literal would not be a secret"
    assert cluster.api.get("ray.io/v1", "RayService", "fleet", "default") is None


def test_a_warm_up_job_and_its_class_are_taken_by_the_server(cluster: ControlPlane, tmp_path: Path) -> None:
    """With the server's own rules for a Job's failures, which the manifest alone does not show."""
    pool = {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.2xlarge"], "sealedCaches": True}
    mirror = {"create": True, "bucket": "b"}
    namespaces = {"namespace": "sealed", "mirrorNamespace": "default", "image": "i:1"}
    plan = planned(tmp_path, [model("org/m", "L4")], pools=[pool], mirror=mirror, kubernetes=namespaces)
    priority, job = (cluster.api.apply(one, manager=MANAGER, dry_run=True) for one in warm_ups(plan))
    assert (priority["value"], priority["preemptionPolicy"]) == (-10, "Never")
    assert job["spec"]["template"]["spec"]["priorityClassName"] == priority["metadata"]["name"]
    assert job["spec"]["podFailurePolicy"]["rules"][0]["action"] == "Ignore"
