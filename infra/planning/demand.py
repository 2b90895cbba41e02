"""What a model's replicas need from nodes, as pieces to be packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from modelfleet.infra.planning.packing import Steps, copies, nodes_on, steps
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.serve_options import Bundle, placement_bundles, placement_strategy, replica_bounds


@dataclass(frozen=True)
class Demand:
    """A model's placement group and its numbers of replicas."""

    model: LoadedModel
    bundles: tuple[Bundle, ...]
    min: int
    initial: int
    max: int

    @property
    def model_id(self) -> str:
        """The model's public name."""
        return self.model.config.model_id

    @property
    def strategy(self) -> str:
        """Ray's placement strategy."""
        return placement_strategy(self.model.config)

    @cached_property
    def total(self) -> Bundle:
        """Sum of the bundles: what one node must offer to carry a whole replica."""
        total: Bundle = {}
        for bundle in self.bundles:
            for name, amount in bundle.items():
                total[name] = total.get(name, 0.0) + amount
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
        """The parts of one replica that must each fit on a single node with `room`.

        The whole replica under STRICT_PACK, and under PACK if a node carries it; otherwise its bundles. Under
        STRICT_SPREAD the bundles of a replica need a node each. So a bundle also takes one unit of an extra resource,
        of which a node has one unit per replica: no two bundles of one replica then need to share a node.
        """
        if len(self.parts) == 1 or self.strategy == "STRICT_PACK":
            return (self.whole,)
        if self.strategy == "PACK" and copies(self.whole, room):
            return (self.whole,)
        if self.strategy == "STRICT_SPREAD":
            return [{**part, self._apart: 1} for part in self.parts]
        return self.parts

    def spreads(self, room: Steps) -> bool:
        """Whether a replica takes several nodes with `room`, or may."""
        return len(self.pieces(room)) > 1

    def fits(self, room: Steps) -> bool:
        """Whether nodes with `room` carry a replica."""
        return all(copies(piece, {**room, self._apart: 1}) for piece in self.pieces(room))

    @property
    def _apart(self) -> str:
        return f"apart:{self.model_id}"


def demand_of(model: LoadedModel) -> Demand:
    """A model's demand."""
    return Demand(model, tuple(placement_bundles(model.config)), *replica_bounds(model.config))


def nodes_for(demands: Sequence[Demand], counts: Mapping[str, int], room: Steps) -> int:
    """How many nodes with `room` carry `counts` replicas of each model, given that each demand fits a node."""
    apart = {d._apart: counts[d.model_id] for d in demands if d.strategy == "STRICT_SPREAD"}
    items = [(piece, counts[d.model_id]) for d in demands if counts[d.model_id] for piece in d.pieces(room)]
    return nodes_on(items, {**room, **apart})
