"""What the manifests say about the store of the Ray head's state; KubeRay 1.6.2 reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.everything import PLACEHOLDER, with_secrets
from modelfleet.infra.kubernetes.manifests.ray import cluster_parts, ray_cluster, ray_service
from modelfleet.infra.kubernetes.ray import REPLACES
from modelfleet.infra.planning import Plan
from tests.cluster.fleet import model, planned
from tests.unit.kubernetes.projects import L4
from tests.unit.kubernetes.test_network import End, may_reach, policies_of

#: Ray 2.60 `max_direct_call_object_size`; https://docs.ray.io/en/latest/ray-core/patterns/return-ray-put.html
RAYS_LIMIT = 100 << 10


def planned_with(root: Path, **kubernetes: Any) -> Plan:
    return planned(root, [model("org/one", "L4")], pools=[L4], target="eks", kubernetes=kubernetes)


def variables(group: dict[str, Any]) -> dict[str, str]:
    (container,) = group["template"]["spec"]["containers"]
    return {one["name"]: one.get("value", "") for one in container["env"]}


def test_a_made_store_has_tls_a_password_and_no_shared_namespace(tmp_path: Path) -> None:
    """Two RayClusters of a rollout in one namespace of the store would overwrite each other's state."""
    options = ray_cluster(planned_with(tmp_path, headStorage="valkey"), "rediss://x:6379")["gcsFaultToleranceOptions"]
    assert options == {
        "redisAddress": "rediss://x:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "head-storage", "key": "password"}}},
    }


def test_the_address_of_a_made_store_is_no_part_of_the_plans_hash(tmp_path: Path) -> None:
    """It is known only when the store is made; a preview must not announce another cluster until then."""
    plan = planned_with(tmp_path, headStorage="valkey")
    annotations = [
        ray_service(plan, address)["metadata"]["annotations"] for address in ("rediss://a:1", "rediss://b:1")
    ]
    assert annotations[0] == annotations[1]
    assert cluster_parts(plan) != cluster_parts(planned_with(tmp_path))


@pytest.mark.parametrize(
    ("kubernetes", "verified"),
    [
        pytest.param({"headStorage": "valkey"}, True, id="made"),
        pytest.param({"redisAddress": "rediss://redis.data:6379"}, True, id="own-with-tls"),
        pytest.param({"redisAddress": "redis.data:6379"}, False, id="own-without"),
        pytest.param({}, False, id="none"),
    ],
)
def test_the_head_verifies_a_store_with_tls(tmp_path: Path, kubernetes: dict[str, Any], verified: bool) -> None:
    head = variables(ray_cluster(planned_with(tmp_path, **kubernetes))["headGroupSpec"])
    assert head.get("RAY_REDIS_CA_CERT") == ("/etc/ssl/certs/ca-certificates.crt" if verified else None)


def test_workers_wait_for_a_head_on_a_new_node_only_where_it_comes_back(tmp_path: Path) -> None:
    """Without a store they must end with their head: the next one does not know them."""
    waits = [
        variables(ray_cluster(planned_with(tmp_path, headStorage=storage))["workerGroupSpecs"][0]).get(
            "RAY_gcs_rpc_server_reconnect_timeout_s"
        )
        for storage in ("valkey", "none")
    ]
    assert waits == ["1800", None]


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments")
def test_an_answer_to_the_next_controller_needs_no_object_store(tmp_path: Path) -> None:
    """A worker knows the next head's late: then 111 kB did not arrive in 30 s, and Serve ended a healthy replica."""
    from ray import cloudpickle  # slow, and nobody else here needs it
    from ray.serve._private.config import DeploymentConfig

    replica = len(cloudpickle.dumps(DeploymentConfig()))
    for storage, fits in (("valkey", True), ("none", False)):
        cluster = ray_cluster(planned_with(tmp_path, headStorage=storage))
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            limit = int(variables(group).get("RAY_max_direct_call_object_size", RAYS_LIMIT))
            assert (replica < limit) is fits, "else Ray no longer needs the variable"


def test_the_password_is_in_a_secret_and_nowhere_else(tmp_path: Path) -> None:
    plan = planned_with(tmp_path, headStorage="valkey")
    (secret,) = [one for one in with_secrets(plan, secrets=()) if one["kind"] == "Secret"]
    assert (secret["metadata"]["name"], secret["stringData"]) == ("head-storage", {"password": PLACEHOLDER})
    assert not [one for one in everything(plan) if one["kind"] == "Secret"]
    own = planned_with(tmp_path, redisAddress="redis.data:6379")
    assert not [one for one in with_secrets(own, secrets=()) if one["kind"] == "Secret"], "the user's own"


def test_with_rollout_replace_a_change_of_the_store_makes_a_new_ray_service() -> None:
    """KubeRay does nothing with it then: its upgrade strategy is None."""
    assert "spec.rayClusterConfig.gcsFaultToleranceOptions" in REPLACES


def test_the_head_and_the_pod_that_empties_its_store_reach_it_and_no_worker_does(tmp_path: Path) -> None:
    """KubeRay holds a deleted RayCluster until its cleanup Job has ended; that pod is made from the head's template."""
    plan = planned_with(tmp_path, headStorage="valkey")
    policies, cluster = policies_of(plan), ray_cluster(plan, "rediss://x:6379")
    (workers,) = cluster["workerGroupSpecs"]
    store = End("store", namespace="", address="10.0.40.7")
    for kind, group in (
        ("head", cluster["headGroupSpec"]),
        ("redis-cleanup", cluster["headGroupSpec"]),
        ("worker", workers),
    ):
        own = {"ray.io/is-ray-node": "yes", "ray.io/node-type": kind}
        pod = End(kind, namespace="modelfleet-dev", labels={**group["template"]["metadata"]["labels"], **own})
        assert may_reach(policies, pod, store, 6379) is (kind != "worker"), kind
