"""A live RayService on real nodes: what a change of models restarts and scales, and what happens to an open stream.

The replicas are `light_app`'s; the rest is as in production: operator, Ray with its autoscaler, Serve with HAProxy. Its
workers may run on any node, for those of a pool belong to the fleet of the other tests.
"""

from __future__ import annotations

import base64
import copy
import http.client
import json
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from modelfleet.infra.kubernetes.api import ApiError
from modelfleet.infra.kubernetes.manifests.everything import base, operator, ray
from modelfleet.infra.kubernetes.manifests.operator import custom_resource_definitions
from modelfleet.infra.kubernetes.manifests.ray import serve_config_text
from modelfleet.infra.kubernetes.names import DASHBOARD_PORT, SERVE_PORT
from modelfleet.infra.names import GPU
from modelfleet.infra.planning import Plan
from tests.bare_python import code_with
from tests.cluster.fleet import model, planned
from tests.nodes.life import HEAD
from tests.waiting import wait_until
from tools.kubernetes.cluster import MANAGER, Cluster
from tools.kubernetes.node.serving_image import SERVING
from tools.kubernetes.trial.port_forward import PortForward
from tools.kubernetes.trial.trial import Trial

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.long(why="a second stack, 4 minutes; kwok and Ray show the same in tests/cluster"),
]

STACK, BUCKET = "changes", "fleet-changes"
POOLS = [
    {"name": "cpu", "accelerator": "CPU", "maxNodes": 1, "instanceTypes": ["c7i.2xlarge"]},
    {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.xlarge"]},
    {"name": "t4", "accelerator": "T4", "maxNodes": 2, "instanceTypes": ["g4dn.12xlarge"]},
]
#: The node that claims to have a GPU, as no card is needed to place a replica that does not use it.
GPU_NODE = "node-2"
NAMESPACE = f"modelfleet-{STACK}"
SIGNED = {
    "aws_access_key_id": "trial",
    "aws_secret_access_key": "trial",
    "config": Config(proxies={}, s3={"addressing_style": "path"}),
}
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Stream:
    """An open answer of a model, read in the background."""

    def __init__(self, url: str) -> None:
        self.ticks = 0
        self.ended: str | None = None
        self._thread = threading.Thread(target=self._read, args=(url,), daemon=True)
        self._thread.start()

    def _read(self, url: str) -> None:
        try:
            with OPENER.open(url, timeout=60) as answer:
                for line in answer:
                    assert int(line) == self.ticks, f"tick {line!r} after {self.ticks}"
                    self.ticks += 1
            self.ended = "closed"
        except (OSError, ValueError, AssertionError, http.client.HTTPException) as error:
            self.ended = repr(error)

    def goes_on(self) -> bool:
        """Wait for more of the stream."""
        before = self.ticks
        wait_until(lambda: self.ended or self.ticks > before + 1, what="more of the stream", seconds=60)
        return self.ended is None


class Live:
    """The stack and the parts of it that must not change."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.api, self._folder = cluster, cluster.api, folder
        self.settings = {
            "pools": POOLS,
            "mirror": {"create": False, "bucket": BUCKET},
            "kubernetes": {"image": cluster.images.reference(SERVING)},
        }
        self.dashboard = self.serve = ""

    def planned(self, models: list[dict[str, Any]]) -> Plan:
        """The plan of these models."""
        return planned(self._folder, models, stack=STACK, **self.settings)

    def apply(self, models: list[dict[str, Any]]) -> Plan:
        """Apply scripts and RayService of these models, with `light_app` as their program."""
        plan = self.planned(models)
        *others, manifest = ray(plan)
        config = copy.deepcopy(plan.serve_config)
        for application in config["applications"]:
            application["import_path"] = "light_app:build"
        manifest["spec"]["serveConfigV2"] = serve_config_text(config)
        for group in manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
            del group["template"]["spec"]["nodeSelector"]
        for one in [*others, manifest]:
            self.api.apply(one, manager=MANAGER, force=True)
        return plan

    def applications(self) -> dict[str, Any]:
        """What Ray Serve reports about its applications, by name."""
        request = urllib.request.Request(f"{self.dashboard}/api/serve/applications/", headers=self._held())
        with OPENER.open(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)["applications"]
        return found

    def _held(self) -> dict[str, str]:
        """The token that KubeRay made for the one RayCluster, as its Ray wants it."""
        secret = self.api.get("v1", "Secret", self.ray_cluster()["metadata"]["name"], NAMESPACE)
        assert secret is not None, "KubeRay made no token"
        return {"Authorization": f"Bearer {base64.b64decode(secret['data']['auth_token']).decode()}"}

    def ray_cluster(self) -> dict[str, Any]:
        """The one RayCluster."""
        (found,) = self.api.list("ray.io/v1", "RayCluster", NAMESPACE)
        return found

    def head(self) -> str | None:
        """The name of the head, once it is ready."""
        for pod in self.api.list("v1", "Pod", NAMESPACE, HEAD):
            if any((one["type"], one["status"]) == ("Ready", "True") for one in pod["status"].get("conditions", [])):
                return str(pod["metadata"]["name"])
        return None

    def is_ready(self) -> bool:
        """Whether KubeRay reports the RayService as ready."""
        service = self.api.get("ray.io/v1", "RayService", "fleet", NAMESPACE) or {}
        conditions = {one["type"]: one["status"] for one in service.get("status", {}).get("conditions", [])}
        return conditions.get("Ready") == "True"

    def settled(self, plan: Plan) -> dict[str, list[str]]:
        """The ids of each model's replicas, once Serve runs exactly the plan's models with the plan's settings."""
        wanted = {one.slug: one.application.args for one in plan.models}

        def look() -> dict[str, list[str]] | None:
            found = self.applications()
            running = {name: one for name, one in found.items() if one["status"] == "RUNNING"}
            args = {name: one["deployed_app_config"]["args"] for name, one in running.items()}
            if found.keys() != wanted.keys() or args != wanted:
                return None
            return {name: sorted(_replicas(one)) for name, one in running.items()}

        return wait_until(look, what=f"Serve runs {sorted(wanted)}", seconds=600, retry=OSError)

    def identity(self) -> tuple[str, list[str]]:
        """The RayCluster and its pods."""
        pods = self.api.list("v1", "Pod", NAMESPACE, "ray.io/is-ray-node=yes")
        return self.ray_cluster()["metadata"]["uid"], sorted(pod["metadata"]["uid"] for pod in pods)

    def asked_for(self) -> dict[str, int]:
        """Workers of each group that the autoscaler has asked for."""
        groups = self.ray_cluster()["spec"]["workerGroupSpecs"]
        return {group["groupName"]: group.get("replicas") or 0 for group in groups}


def _replicas(application: dict[str, Any]) -> list[str]:
    """The replicas that take requests; an old one may still be ending."""
    replicas = [replica for one in application["deployments"].values() for replica in one["replicas"]]
    return [replica["actor_id"] for replica in replicas if replica["state"] == "RUNNING"]


@pytest.fixture
def live(cluster: Cluster, storage: Mapping[str, str], tmp_path: Path) -> Iterator[Live]:
    made = Live(cluster, tmp_path)
    models = [model("org/a", "CPU"), model("org/b", "CPU")]
    plan = made.planned(models)
    s3 = boto3.client("s3", endpoint_url=storage["AWS_ENDPOINT_URL"], region_name="us-east-1", **SIGNED)
    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key=plan.code.key, Body=code_with(Path(__file__).parent / "light_app.py"))
    for manifest in [*custom_resource_definitions(), *base(plan), *operator(plan)]:
        cluster.api.apply(manifest, manager=MANAGER, force=True)
    wait_until(
        lambda: cluster.api.list("ray.io/v1", "RayService") is not None,
        what="the API server knows RayServices",
        retry=ApiError,
    )
    Trial(STACK, cluster.plane.kubeconfig, cluster.api).give_secret(plan.namespace, plan.region)
    offer(cluster, "1")
    made.apply(models)
    with ExitStack() as ends:
        head = wait_until(made.head, what="the head is ready", seconds=300)
        forward = {
            port: ends.enter_context(PortForward(cluster.plane.kubeconfig, NAMESPACE, head, port))
            for port in (DASHBOARD_PORT, SERVE_PORT)
        }
        made.dashboard, made.serve = forward[DASHBOARD_PORT].url, forward[SERVE_PORT].url
        wait_until(made.is_ready, what="the RayService is ready", seconds=600)
        yield made
    offer(cluster, None)
    cluster.api.delete("ray.io/v1", "RayService", "fleet", NAMESPACE)
    gone = lambda: cluster.api.list("v1", "Pod", NAMESPACE, "ray.io/is-ray-node=yes") == []  # noqa: E731
    wait_until(gone, what="its pods are gone", seconds=300)
    cluster.api.delete("v1", "Namespace", NAMESPACE)


def offer(cluster: Cluster, gpus: str | None) -> None:
    """What the device plugin would tell the kubelet."""
    capacity = {"status": {"capacity": {GPU: gpus}}}
    merging = "application/merge-patch+json"
    cluster.api.call("patch", "v1", "Node", GPU_NODE, None, "/status", body=capacity, content_type=merging)


def test_changes_of_models_restart_only_what_changed_under_an_open_stream_and_scale_only_its_pool(live: Live) -> None:
    a, b, c = (model(f"org/{name}", "CPU") for name in "abc")
    before = live.settled(live.apply([a, b]))
    cluster, asked = live.identity(), live.asked_for()
    assert asked == {"cpu": 1, "l4": 0, "t4": 0}, "the autoscaler asked for nodes that no model needs"
    stream = Stream(f"{live.serve}/org--a/stream")
    assert stream.goes_on(), stream.ended

    edited = model("org/b", "CPU", max_total_tokens=1024)
    steps: list[tuple[str, list[dict[str, Any]], set[str]]] = [
        ("added", [a, b, c], {"org--c"}),
        ("edited", [a, edited, c], {"org--b"}),
        ("reordered", [c, edited, a], set()),
        ("removed", [edited, a], set()),
    ]
    for what, models, changed in steps:
        after = live.settled(live.apply(models))
        assert stream.goes_on(), f"{what}: the stream on another model ended: {stream.ended}"
        for name in after.keys() - changed:
            assert after[name] == before[name], f"{what}: {name} was restarted"
        for name in changed & before.keys():
            assert not set(after[name]) & set(before[name]), f"{what}: {name} is the old one"
        assert live.identity() == cluster, what
        before = after
    assert live.asked_for() == asked, "more nodes for the same models"

    # A model on another accelerator: its pool gets a node, and no other pool does.
    plan = live.apply([edited, a, model("org/on-l4", "L4")])
    after = live.settled(plan)
    assert live.asked_for() == {"cpu": 1, "l4": 1, "t4": 0}
    assert {name: after[name] for name in before} == before, "another model was restarted"
    uid, pods = live.identity()
    assert uid == cluster[0] and set(pods) > set(cluster[1])
    assert stream.goes_on(), stream.ended
    print(json.dumps({"ticks": stream.ticks}))
