"""New serving code on a live RayService: steps of serveConfigV2, and when KubeRay's report of one counts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes import release
from modelfleet.infra.kubernetes.manifests.ray import cluster_parts, ray_service, serve_config_text
from modelfleet.infra.kubernetes.release import LiveService
from modelfleet.infra.kubernetes.rollout import rollout_notice
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.release import wanted_configs
from modelfleet.infra.rolling import Stopped, roll
from tests.cluster.fleet import model, planned

POOLS = [{"name": "l4", "accelerator": "L4", "maxNodes": 4, "instanceTypes": ["g6.2xlarge"]}]
OLD = "s3://bucket/code/old.zip"


class Cluster:
    """An API server and KubeRay in time: KubeRay sees a change after 4 s and only then reports what Serve does.

    An application needs 30 s to start; those in `broken` fail then.
    """

    def __init__(self, service: dict[str, Any]) -> None:
        self.now = 0.0
        self.service = copy.deepcopy(service)
        self.service["metadata"]["generation"] = 1
        self.steps: list[list[str]] = []
        self.broken: tuple[str, ...] = ()
        self.sick: tuple[str, ...] = ()
        self._changed = -100.0
        self._before: dict[str, dict[str, Any]] = {}

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def configs(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in json.loads(self.service["spec"]["serveConfigV2"])["applications"]}

    def merge(self, version: str, kind: str, name: str, namespace: str, patch: dict[str, Any]) -> None:
        self._before = self.configs()
        self.service["spec"] |= patch["spec"]
        self.service["metadata"]["generation"] += 1
        self.steps.append([name for name, one in self.configs().items() if one != self._before.get(name)])
        self._changed = self.now

    def get(self, *where: str) -> dict[str, Any]:
        since = self.now - self._changed
        generation = self.service["metadata"]["generation"]
        states = {}
        for name, one in self.configs().items():
            word = "UNHEALTHY" if name in self.sick else "RUNNING"
            if one != self._before.get(name, one):
                new = one["runtime_env"]["working_dir"] != OLD
                # At 4 s KubeRay has seen the change, and still reports the states from before it.
                word = word if since < 6 else "DEPLOYING" if since < 36 else word
                word = "DEPLOY_FAILED" if new and name in self.broken and since >= 36 else word
            states[name] = {"status": word, "message": "Traceback\nRuntimeError: a fault" if "FAILED" in word else ""}
        status = {
            "observedGeneration": generation if since >= 4 else generation - 1,
            "activeServiceStatus": {"applicationStatuses": states},
        }
        return {**self.service, "status": status}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    # YAML 1.1 reads JSON's 1e-06 as a word.
    small = {"engine_kwargs": {"hf_overrides": {"rms_norm_eps": 1e-06}}}
    models = [model("org/a", "L4"), model("org/b", "L4"), model("org/c", "L4", **small)]
    return planned(tmp_path, models, pools=POOLS)


@pytest.fixture
def cluster(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The plan's RayService with earlier code."""
    service = ray_service(plan)
    config = json.loads(service["spec"]["serveConfigV2"])
    for one in config["applications"]:
        one["runtime_env"]["working_dir"] = OLD
    service["spec"]["serveConfigV2"] = serve_config_text(config)
    made = Cluster(service)
    monkeypatch.setattr(release, "time", made)
    return made


def live(cluster: Cluster, plan: Plan) -> LiveService:
    return LiveService(cluster, plan.namespace, lambda line: None, ".".join(cluster_parts(plan)))


def test_each_step_changes_one_model_and_waits_until_it_runs(cluster: Cluster, plan: Plan) -> None:
    roll(live(cluster, plan), wanted_configs(plan), 1, lambda line: None)
    assert cluster.steps == [["org--a"], ["org--b"], ["org--c"]]
    assert cluster.now >= 3 * 36, "a report from before the change counted"
    wanted = {one["name"]: one for one in wanted_configs(plan)}
    assert cluster.configs() == wanted, "Pulumi's own update of the RayService finds what it wants"


def test_a_model_that_does_not_start_gets_its_old_code_back(cluster: Cluster, plan: Plan) -> None:
    cluster.broken = ("org--b",)
    with pytest.raises(Stopped, match="stops at org--b: org--b failed to start: RuntimeError: a fault; org--b has its"):
        roll(live(cluster, plan), wanted_configs(plan), 1, lambda line: None)
    assert cluster.steps == [["org--a"], ["org--b"], ["org--b"]]
    codes = {name: one["runtime_env"]["working_dir"] for name, one in cluster.configs().items()}
    assert codes["org--b"] == codes["org--c"] == OLD != codes["org--a"]


def test_a_model_that_is_not_healthy_is_not_waited_for(cluster: Cluster, plan: Plan) -> None:
    cluster.sick = cluster.broken = ("org--b",)
    roll(live(cluster, plan), wanted_configs(plan), 1, lambda line: None)
    assert cluster.steps == [["org--b"], ["org--a"], ["org--c"]]


def test_a_new_ray_cluster_takes_the_code_whole(cluster: Cluster, plan: Plan) -> None:
    """KubeRay starts it beside the live one, which would otherwise run code for another image."""
    cluster.service["metadata"]["annotations"]["modelfleet.dev/cluster"] = "another.cluster"
    roll(live(cluster, plan), wanted_configs(plan), 1, lambda line: None)
    assert cluster.steps == []


def test_the_preview_lists_the_order(cluster: Cluster, plan: Plan) -> None:
    api: Any = cluster
    said = rollout_notice(api, plan) or ""
    assert "models take it one at a time, in this order: org--a, org--b, org--c." in said
