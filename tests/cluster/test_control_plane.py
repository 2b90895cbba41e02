"""The tools that the other tests of this folder rely on."""

from __future__ import annotations

import base64
import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelfleet.cli import key, pulumi_run
from modelfleet.infra.gateway import keys_id, render_key_map
from modelfleet.infra.kubernetes.api import ApiError
from modelfleet.infra.kubernetes.manifests.everything import warm_ups
from modelfleet.infra.kubernetes.manifests.gateway import KEYS_ID, gateway_config, gateway_deployment
from modelfleet.infra.kubernetes.manifests.namespace import namespaces, priority_class, service_accounts
from modelfleet.infra.kubernetes.manifests.network import network_policies
from modelfleet.infra.kubernetes.manifests.operator import CRDS_FILE
from modelfleet.infra.kubernetes.manifests.own_monitoring import own_monitoring
from modelfleet.infra.kubernetes.manifests.ray import ray_service
from modelfleet.infra.kubernetes.manifests.secrets import gateway_keys
from modelfleet.infra.kubernetes.names import MONITOR
from tests.cluster.conftest import MANAGER, apply_all, wait_for
from tests.cluster.eks_nodes import system_nodes
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


def test_a_prometheus_of_the_stacks_own_is_taken_by_the_server_where_it_enforces_restricted(
    cluster: ControlPlane, tmp_path: Path
) -> None:
    """Its pod too, which a Deployment alone does not show."""
    namespace, labels = "watched", {"pod-security.kubernetes.io/enforce": "restricted"}
    where = {"namespace": namespace, "createNamespace": False, "image": "i:1"}
    watch = {"metrics": "own", "webhookService": "http://hook.ops.svc:8080"}
    secret = {"alertWebhook": {"secure": "v1:a:b"}}
    plan = planned(tmp_path, [model("org/m", "L4")], kubernetes=where, observability=watch, **secret)
    metadata = {"name": namespace, "labels": labels}
    cluster.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, manager=MANAGER)
    try:
        account, *others = own_monitoring(plan)
        cluster.api.apply(account, manager=MANAGER)
        for one in others:
            taken = cluster.api.apply(one, manager=MANAGER, dry_run=True)
            if one["kind"] == "Deployment":
                spec = {**taken["spec"]["template"]["spec"], "serviceAccountName": account["metadata"]["name"]}
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "namespace": namespace}}
                running = cluster.api.apply({**pod, "spec": spec}, manager=MANAGER, dry_run=True)
                assert [each["name"] for each in running["spec"]["containers"]] == ["prometheus", "alertmanager"]
                with pytest.raises(ApiError, match="PodSecurity"):
                    cluster.api.apply({**pod, "spec": {**spec, "hostNetwork": True}}, manager=MANAGER, dry_run=True)
        policies = [one for one in network_policies(plan) if one["metadata"]["name"] == MONITOR]
        assert [cluster.api.apply(one, manager=MANAGER, dry_run=True)["kind"] for one in policies] == ["NetworkPolicy"]
    finally:
        cluster.api.delete("v1", "Namespace", namespace)


def test_a_key_is_revoked_by_the_command_in_a_real_cluster(
    cluster: ControlPlane, stack_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller is a person with a kubeconfig; the server really rolls the Deployment, and refuses a stale change."""
    where = f"revoke-{stack_name}"
    settings = {"namespace": where, "kubeconfig": str(cluster.kubeconfig)}
    secret = {name: {"secure": f"v1:{name}"} for name in ("alice", "bob")}
    plan = planned(
        tmp_path, [model("org/m", "L4")], stack=stack_name, auth="keys", apiKeys=secret, kubernetes=settings,
        pools=[{"name": "l4", "accelerator": "L4", "maxNodes": 1, "instanceTypes": ["g6.2xlarge"]}],
    )  # fmt: skip
    api, text = cluster.api, render_key_map({"alice": "sk-alice-0123456789", "bob": "sk-bob-0123456789abc"})
    for node in system_nodes(plan):
        api.create(node)
    deployment = gateway_deployment(plan, keys_id(text))
    for container in deployment["spec"]["template"]["spec"]["containers"]:
        container["lifecycle"]["preStop"]["exec"]["command"] = ["sleep", "1"]
    apply_all(
        api,
        [
            *namespaces(plan),
            *priority_class(plan),
            *service_accounts(plan),
            gateway_keys(plan, text),
            gateway_config(plan),
            deployment,
        ],
    )

    def pods() -> set[str]:
        found = api.list("v1", "Pod", where)
        return {pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]}

    def ready() -> bool:
        live = api.get("apps/v1", "Deployment", "gateway", where) or {}
        return bool(live.get("status", {}).get("availableReplicas", 0) == plan.gateway.settings.replicas)

    try:
        wait_for("the gateway", ready, seconds=60)
        before, removed = pods(), list[str]()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(pulumi_run, "remove_config", lambda root, stack, path: removed.append(path))
        assert key.run_revoke(stack_name, "alice") == 0
        live = api.get("v1", "Secret", "gateway-keys", where)
        assert live is not None
        left = base64.b64decode(live["data"]["keys.map"]).decode()
        assert " bob\n" in left and "alice" not in left and removed == ['modelfleet:apiKeys["alice"]']
        assert not before & pods(), "every pod that is left is new"
        rolled = (api.get("apps/v1", "Deployment", "gateway", where) or {})["spec"]["template"]["metadata"]
        assert rolled["annotations"][KEYS_ID] == keys_id(left), "the next run makes the same"
        stale = [{"op": "test", "path": "/data/keys.map", "value": "eA=="}]
        with pytest.raises(ApiError) as refused:
            api.patch_parts("v1", "Secret", "gateway-keys", where, stale)
        assert refused.value.code in (409, 422), "what `revoke` takes for another run at the same moment"
    finally:
        api.delete("apps/v1", "Deployment", "gateway", where)
        for space in namespaces(plan):
            api.delete("v1", "Namespace", space["metadata"]["name"])
        for priority in priority_class(plan):
            api.delete("scheduling.k8s.io/v1", "PriorityClass", priority["metadata"]["name"])
        for node in system_nodes(plan):
            api.delete("v1", "Node", node["metadata"]["name"])
