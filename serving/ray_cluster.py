"""What a replica asks of Ray for the books, from inside it. Apart from `node_hours`, which the command reads too."""

from __future__ import annotations

from collections.abc import Mapping

from modelfleet.serving.node_hours import RAY_ANSWERS_S, UNNAMED, RayNode


class RayCluster:
    """Ray's own answers, from inside a replica."""

    def nodes(self) -> dict[str, RayNode]:
        """As Ray Serve's controller asks (Ray 2.60 `serve/_private/cluster_node_info_cache.py`)."""
        from ray._private.worker import global_worker
        from ray.core.generated import gcs_pb2

        found = global_worker.gcs_client.get_all_node_info(timeout=RAY_ANSWERS_S)
        return {
            node_id.hex(): RayNode(
                node=node_id.hex(),
                pool=info.node_type_name or UNNAMED,
                began=info.start_time_ms / 1000,
                ended=None if info.state == gcs_pb2.GcsNodeInfo.ALIVE else info.end_time_ms / 1000,
                gpus=info.resources_total.get("GPU", 0.0),
                cpus=info.resources_total.get("CPU", 0.0),
            )
            for node_id, info in found.items()
        }

    def held(self) -> dict[str, dict[str, float]]:
        """By its placement group, which also has the workers on other nodes; without one its own resources."""
        import ray
        from ray.util.placement_group import get_current_placement_group, placement_group_table

        group = get_current_placement_group()
        if group is None:
            return {self.here(): dict(ray.get_runtime_context().get_assigned_resources())}
        table = placement_group_table(group)
        found: dict[str, dict[str, float]] = {}
        for bundle, resources in table["bundles"].items():
            on = found.setdefault(table["bundles_to_node_id"][bundle], {})
            for name, amount in resources.items():
                on[name] = on.get(name, 0.0) + amount
        return found

    def first(self, minute: int) -> bool:
        """By a key in Ray's store that only one can make; that of the minute before the last one goes."""
        from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

        there = _internal_kv_put(f"modelfleet-nodes-{minute}", b"1", overwrite=False)
        if not there:
            _internal_kv_del(f"modelfleet-nodes-{minute - 2}")
        return not there

    def here(self) -> str:
        """This process's node."""
        import ray

        return str(ray.get_runtime_context().get_node_id())


class RayStore:
    """What replicas share of the budgets (`settling.Store`), in the Ray head's own store.

    It lives as long as the head, and with `headStorage` longer.
    """

    PREFIX = "modelfleet-used-"

    def put(self, replica: str, text: str, *, new: bool = False) -> None:
        """As `settling.Store`."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self.PREFIX + replica, text, overwrite=not new)

    def all(self) -> Mapping[str, str]:
        """As `settling.Store`."""
        from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

        names = [name.decode() for name in _internal_kv_list(self.PREFIX)]
        texts = {name.removeprefix(self.PREFIX): _internal_kv_get(name) for name in names}
        return {replica: text.decode() for replica, text in texts.items() if text is not None}

    def remove(self, replica: str) -> None:
        """As `settling.Store`."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self.PREFIX + replica)
