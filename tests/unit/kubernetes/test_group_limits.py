"""What is patched in a live RayCluster when pools get other sizes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from modelfleet.infra.kubernetes.group_limits import limit_changes
from modelfleet.infra.kubernetes.manifests.ray import ray_cluster
from tests.cluster.fleet import model, planned

L4 = {"name": "l4", "accelerator": "L4", "maxNodes": 3, "instanceTypes": ["g6.2xlarge"]}
T4 = {"name": "t4", "accelerator": "T4", "maxNodes": 2, "instanceTypes": ["g4dn.12xlarge"]}


def live(root: Path, pools: list[dict[str, Any]]) -> dict[str, Any]:
    return {"spec": copy.deepcopy(ray_cluster(planned(root, [model("org/one", "L4")], pools=pools)))}


def test_only_limits_that_differ_are_patched_and_only_in_the_group_that_they_are_of(tmp_path: Path) -> None:
    cluster = live(tmp_path / "a", [L4, T4])
    cluster["spec"]["workerGroupSpecs"][1]["replicas"] = 2  # the autoscaler's
    after = planned(tmp_path / "b", [model("org/one", "L4")], pools=[L4, {**T4, "maxNodes": 5, "minNodes": 1}])
    assert limit_changes(cluster, after) == [
        {"op": "test", "path": "/spec/workerGroupSpecs/1/groupName", "value": "t4"},
        {"op": "add", "path": "/spec/workerGroupSpecs/1/minReplicas", "value": 1},
        {"op": "add", "path": "/spec/workerGroupSpecs/1/maxReplicas", "value": 6},
    ]


def test_a_cluster_of_the_same_pools_and_a_group_that_the_plan_does_not_know_are_left_alone(tmp_path: Path) -> None:
    cluster = live(tmp_path / "a", [L4, T4])
    assert limit_changes(cluster, planned(tmp_path / "b", [model("org/one", "L4")], pools=[L4])) == []
