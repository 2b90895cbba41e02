"""A real Ray behind a live RayService: what a change of models restarts and scales, and what happens to an open stream.

The replicas are `light_app`'s; the rest is as in production: operator, Ray with its autoscaler, Serve with HAProxy.
"""

from __future__ import annotations

import copy
import http.client
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.manifests.ray import ray_service, serve_config_text
from modelfleet.infra.planning import Plan
from tests.bare_python import code_with
from tests.cluster.conftest import MANAGER, Stack, wait_for
from tests.cluster.fleet import model, planned
from tests.cluster.pod_network import PodNetwork
from tests.cluster.real_pods import BUCKET, SERVE, RealPods, Storage, is_ready, open_url

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
pytest_plugins = ["tests.cluster.real_pods"]

POOLS = [
    {"name": "cpu", "accelerator": "CPU", "maxNodes": 1, "instanceTypes": ["c7i.2xlarge"]},
    {"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.2xlarge"]},
    {"name": "t4", "accelerator": "T4", "maxNodes": 2, "instanceTypes": ["g4dn.12xlarge"]},
]
SETTINGS = {"pools": POOLS, "mirror": {"create": False, "bucket": BUCKET}}


class Stream:
    """An open answer of a model, read in the background."""

    def __init__(self, url: str) -> None:
        self.ticks = 0
        self.ended: str | None = None
        self._thread = threading.Thread(target=self._read, args=(url,), daemon=True)
        self._thread.start()

    def _read(self, url: str) -> None:
        try:
            with open_url(url) as answer:
                for line in answer:
                    assert int(line) == self.ticks, f"tick {line!r} after {self.ticks}"
                    self.ticks += 1
            self.ended = "closed"
        except (OSError, ValueError, AssertionError, http.client.HTTPException) as error:
            self.ended = repr(error)

    def goes_on(self) -> bool:
        """Wait for more of the stream."""
        before = self.ticks
        return bool(wait_for("more of the stream", lambda: self.ended or self.ticks > before + 1, seconds=60)) and (
            self.ended is None
        )


class Live:
    """The stack, its real Ray, and the parts of it that must not change."""

    def __init__(self, stack: Stack, pods: RealPods, folder: Path) -> None:
        self.stack, self.pods, self.folder = stack, pods, folder

    def apply(self, models: list[dict[str, Any]]) -> Plan:
        """Apply the RayService of these models, with `light_app` as their program."""
        plan = planned(self.folder, models, stack=self.stack.plan.stack, **SETTINGS)
        manifest = ray_service(plan)
        config = copy.deepcopy(plan.serve_config)
        for application in config["applications"]:
            application["import_path"] = "light_app:build"
        manifest["spec"]["serveConfigV2"] = serve_config_text(config)
        self.stack.api.apply(manifest, manager=MANAGER, force=True)
        return plan

    def settled(self, plan: Plan) -> dict[str, list[str]]:
        """The ids of each model's replicas, once Serve runs exactly the plan's models with the plan's settings."""
        wanted = {one.slug: one.application.args for one in plan.models}

        def look() -> dict[str, list[str]] | None:
            found = self.pods.applications()
            running = {name: one for name, one in found.items() if one["status"] == "RUNNING"}
            args = {name: one["deployed_app_config"]["args"] for name, one in running.items()}
            if found.keys() != wanted.keys() or args != wanted:
                return None
            return {name: sorted(_replicas(one)) for name, one in running.items()}

        found: dict[str, list[str]] = wait_for(f"Serve to run {sorted(wanted)}", look, seconds=300)
        return found

    def identity(self) -> tuple[str, list[str]]:
        """The RayCluster and its pods."""
        pods = self.stack.api.list("v1", "Pod", self.stack.namespace, "ray.io/is-ray-node=yes")
        return self.stack.ray_cluster()["metadata"]["uid"], sorted(pod["metadata"]["uid"] for pod in pods)

    def asked_for(self) -> dict[str, int]:
        """Workers of each group that the autoscaler has asked for."""
        groups = self.stack.ray_cluster()["spec"]["workerGroupSpecs"]
        return {group["groupName"]: group.get("replicas") or 0 for group in groups}


def _replicas(application: dict[str, Any]) -> list[str]:
    """The replicas that take requests; an old one may still be ending."""
    replicas = [replica for one in application["deployments"].values() for replica in one["replicas"]]
    return [replica["actor_id"] for replica in replicas if replica["state"] == "RUNNING"]


@pytest.fixture
def live(stack_of: Callable[..., Stack], network: PodNetwork, storage: Storage, tmp_path: Path) -> Live:
    stack = stack_of([model("org/a", "CPU"), model("org/b", "CPU")], **SETTINGS)
    storage.client.put_object(
        Bucket=BUCKET, Key=stack.plan.code.key, Body=code_with(Path(__file__).parent / "light_app.py")
    )
    pods = RealPods(stack, network, storage)
    made = Live(stack, pods, tmp_path)
    made.apply([model("org/a", "CPU"), model("org/b", "CPU")])
    pods.start_head()
    pods.start_autoscaler()
    pods.start_worker("cpu")
    wait_for("RayService Ready", lambda: is_ready(stack), seconds=600)
    return made


def test_changes_of_models_restart_only_what_changed_under_an_open_stream_and_scale_only_its_pool(live: Live) -> None:
    a, b, c = (model(f"org/{name}", "CPU") for name in "abc")
    before = live.settled(live.apply([a, b]))
    cluster, asked = live.identity(), live.asked_for()
    assert asked == {"cpu": 1, "l4": 0, "t4": 0}, "the autoscaler asked for nodes that no model needs"
    stream = Stream(f"http://{live.pods.address}:{SERVE}/org--a/stream")
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
    wait_for("the autoscaler to ask", lambda: live.asked_for() != asked, seconds=300)
    live.pods.start_worker("l4")
    after = live.settled(plan)
    assert live.asked_for() == {"cpu": 1, "l4": 1, "t4": 0}
    assert {name: after[name] for name in before} == before, "another model was restarted"
    uid, pods = live.identity()
    assert uid == cluster[0] and set(pods) > set(cluster[1])
    assert stream.goes_on(), stream.ended
    print(json.dumps({"ticks": stream.ticks}))
