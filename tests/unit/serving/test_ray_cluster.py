"""What a replica asks of Ray, with Ray's own messages and a store in place of its head's."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import NodeID
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.experimental import internal_kv

from modelfleet.serving.ray_cluster import RayCluster, RayStore

#: The module; as an attribute of `ray.util` that name is a function.
GROUPS = import_module("ray.util.placement_group")
HERE, GONE, HEAD = NodeID.from_random(), NodeID.from_random(), NodeID.from_random()


class Head:
    """Ray's head: its nodes, and its store, which says how many keys it added."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}

    def get_all_node_info(self, timeout: float) -> dict[NodeID, GcsNodeInfo]:
        return {
            HERE: GcsNodeInfo(state=0, node_type_name="gpu", start_time_ms=5000, resources_total={"GPU": 4, "CPU": 16}),
            GONE: GcsNodeInfo(state=1, node_type_name="gpu", start_time_ms=1000, end_time_ms=3500),
            HEAD: GcsNodeInfo(state=0, start_time_ms=1000, resources_total={"memory": 1}),
        }

    def internal_kv_put(self, key: bytes, value: bytes, overwrite: bool, namespace: Any) -> int:
        added = key not in self.kept
        if added or overwrite:
            self.kept[key] = value
        return int(added)

    def internal_kv_get(self, key: bytes, namespace: Any) -> bytes | None:
        return self.kept.get(key)

    def internal_kv_keys(self, prefix: bytes, namespace: Any) -> list[bytes]:
        return [key for key in self.kept if key.startswith(prefix)]

    def internal_kv_del(self, key: bytes, by_prefix: bool, namespace: Any) -> int:
        assert not by_prefix
        return int(self.kept.pop(key, None) is not None)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    made = Head()
    monkeypatch.setattr(ray._private.worker.global_worker, "gcs_client", made, raising=False)
    monkeypatch.setattr(internal_kv, "global_gcs_client", made)
    return made


def test_nodes_are_those_that_ray_remembers(head: Head) -> None:
    nodes = RayCluster().nodes()
    here, gone, own = (nodes[one.hex()] for one in (HERE, GONE, HEAD))
    assert (here.pool, here.began, here.ended, here.gpus, here.cpus) == ("gpu", 5.0, None, 4.0, 16.0)
    assert (gone.ended, gone.began) == (3.5, 1.0)
    assert (own.pool, own.gpus, own.cpus) == ("local", 0.0, 0.0)


def test_one_replica_is_the_first_of_a_minute_and_the_store_stays_small(head: Head) -> None:
    asked = [RayCluster().first(minute) for minute in (7, 7, 8, 9, 9, 9, 10)]
    assert asked == [True, False, True, True, False, False, True]
    assert len(head.kept) == 2


def test_a_replica_holds_its_bundles_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "bundles": {0: {"CPU": 1.0, "GPU": 1.0}, 1: {"GPU": 1.0}, 2: {"GPU": 2.0}},
        "bundles_to_node_id": {0: "a", 1: "a", 2: "b"},
    }
    monkeypatch.setattr(GROUPS, "get_current_placement_group", lambda: "group")
    monkeypatch.setattr(GROUPS, "placement_group_table", lambda group: table if group == "group" else {})
    assert RayCluster().held() == {"a": {"CPU": 1.0, "GPU": 2.0}, "b": {"GPU": 2.0}}


def test_without_a_group_it_holds_its_own_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    own = SimpleNamespace(get_assigned_resources=lambda: {"CPU": 2.0}, get_node_id=lambda: "a")
    monkeypatch.setattr(GROUPS, "get_current_placement_group", lambda: None)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: own)
    assert RayCluster().held() == {"a": {"CPU": 2.0}}


def test_what_replicas_share_is_theirs_alone_in_rays_store(head: Head) -> None:
    store = RayStore()
    RayCluster().first(7)
    store.put("one", "1")
    store.put("one", "2", new=True)
    assert dict(store.all()) == {"one": "1"}
    store.put("one", "3")
    store.put("two", "4", new=True)
    assert dict(store.all()) == {"one": "3", "two": "4"}
    store.remove("one")
    assert dict(store.all()) == {"two": "4"} and len(head.kept) == 2
