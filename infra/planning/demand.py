"""What a model's replicas ask of nodes, as pieces that are packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from infra.planning.packing import Steps, copies, fewest_on, steps
from serving.config.load import LoadedModel
from serving.config.serve_options import Bundle, placement_bundles, replica_bounds


@dataclass(frozen=True)
class Demand:
    """A model's placement group and its numbers of replicas."""

    model: LoadedModel
    bundles: tuple[Bundle, ...]
    min: int
    initial: int
    max: int
    #: Bytes that a replica on CPUs takes at least, where its file reserves less.
    host_bytes: int = 0

    @property
    def model_id(self) -> str:
        """The model's public name."""
        return self.model.config.model_id

    @property
    def strategy(self) -> str:
        """Ray's placement strategy."""
        return self.model.config.scaling_config.placement_strategy

    @cached_property
    def total(self) -> Bundle:
        """Sum of the bundles: what one node must offer to carry a whole replica."""
        total: Bundle = {}
        for bundle in self.bundles:
            for name, amount in bundle.items():
                total[name] = total.get(name, 0.0) + amount
        if self.host_bytes > total.get("memory", 0.0):
            total["memory"] = float(self.host_bytes)
        return total

    @cached_property
    def whole(self) -> Steps:
        """`total` in Ray's steps."""
        return steps(self.total)

    @cached_property
    def parts(self) -> tuple[Steps, ...]:
        """The bundles in Ray's steps."""
        return tuple(steps(bundle) for bundle in self.bundles)

    def pieces(self, room: Steps) -> Sequence[Steps]:
        """What is placed as one thing on nodes with `room`.

        A whole replica under STRICT_PACK, and under PACK where a node carries it; else bundle by bundle. Bundles of
        STRICT_SPREAD also ask for one of a resource of which a node has as many as there are replicas: no two
        bundles of one replica can then share a node.
        """
        if len(self.parts) == 1 or self.strategy == "STRICT_PACK":
            return (self.whole,)
        if self.strategy == "PACK" and copies(self.whole, room):
            return (self.whole,)
        if self.strategy == "STRICT_SPREAD":
            return [{**part, self._apart: 1} for part in self.parts]
        return self.parts

    def fits(self, room: Steps) -> bool:
        """Whether nodes with `room` carry a replica."""
        return all(copies(piece, {**room, self._apart: 1}) for piece in self.pieces(room))

    @property
    def _apart(self) -> str:
        return f"apart:{self.model_id}"


def demand_of(model: LoadedModel, host_bytes: int = 0) -> Demand:
    """A model's demand."""
    return Demand(model, tuple(placement_bundles(model.config)), *replica_bounds(model.config), host_bytes)


def nodes_for(demands: Sequence[Demand], counts: Mapping[str, int], room: Steps) -> int:
    """Fewest nodes with `room` that carry the given number of replicas of each model; each of them fits."""
    apart = {d._apart: counts[d.model_id] for d in demands if d.strategy == "STRICT_SPREAD"}
    items = [(piece, counts[d.model_id]) for d in demands if counts[d.model_id] for piece in d.pieces(room)]
    return fewest_on(items, {**room, **apart})
