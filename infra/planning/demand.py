"""What a model's replicas ask of nodes, as items to pack."""

from __future__ import annotations

from dataclasses import dataclass

from serving.config.load import LoadedModel
from serving.config.serve_options import Bundle, placement_bundles, replica_bounds

TOGETHER = frozenset({"STRICT_PACK", "PACK"})


@dataclass(frozen=True)
class Demand:
    """A model's bundles, and their sum when one node carries a whole replica."""

    model: LoadedModel
    bundles: tuple[Bundle, ...]
    min: int
    initial: int
    max: int

    @property
    def total(self) -> Bundle:
        """Sum of the bundles: what a node must offer to carry a replica."""
        total: Bundle = {}
        for bundle in self.bundles:
            for name, amount in bundle.items():
                total[name] = total.get(name, 0.0) + amount
        return total

    @property
    def strategy(self) -> str:
        """Ray's placement strategy."""
        return self.model.config.scaling_config.placement_strategy

    @property
    def on_one_node(self) -> bool:
        """Whether Ray refuses to spread a replica over nodes."""
        return self.strategy == "STRICT_PACK" or len(self.bundles) == 1


def demand_of(model: LoadedModel) -> Demand:
    """A model's demand."""
    return Demand(model, tuple(placement_bundles(model.config)), *replica_bounds(model.config))
