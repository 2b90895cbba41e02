"""Ray's prefix router on the light replicas: its own tree and its rules, without the actor that holds the tree."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

from tools.bench.prefix_replica import PrefixReplica


class RayPrefix:
    """The choice of `PrefixCacheAffinityRouter` (Ray 2.60, `ray/llm/_internal/serve/routing_policies/prefix_aware`).

    The replicas with the longest match of the prompt, of them the one with the fewest open requests; below a match of
    `match_rate` the replicas with the least text in the tree. Where open requests differ by more than `imbalanced`,
    the better of two at random. Ray's default never weighs load: infinity.
    """

    def __init__(self, imbalanced: float = float("inf"), match_rate: float = 0.1) -> None:
        from ray.llm._internal.serve.routing_policies.prefix_aware import prefix_tree

        prefix_tree.logger.setLevel(logging.ERROR)
        self.imbalanced, self.match_rate = imbalanced, match_rate
        self.tree, self.dice, self.clock = prefix_tree.PrefixTree(), random.Random(25), 0.0

    def __call__(self, replicas: Sequence[PrefixReplica], body: dict[str, Any]) -> PrefixReplica:
        """The replica that gets this body."""
        by_name = {str(one.port): one for one in replicas}
        if not self.clock:
            self.tree.add_tenants(list(by_name), self.clock)
        text = "".join(message["content"] for message in body["messages"])
        candidates = self._candidates(by_name, text) or self.dice.sample(list(replicas), 2)
        chosen = min(candidates, key=lambda one: one.open)
        self.clock += 1.0
        self.tree.insert(text, str(chosen.port), self.clock)
        return chosen

    def _candidates(self, by_name: dict[str, PrefixReplica], text: str) -> list[PrefixReplica]:
        open_requests = [one.open for one in by_name.values()]
        if max(open_requests) - min(open_requests) > self.imbalanced:
            return []
        matched, names = self.tree.prefix_match(text, list(by_name))
        if len(matched) / len(text) < self.match_rate:
            names = self.tree.get_smallest_tenants()
        return [by_name[name] for name in names or ()]
