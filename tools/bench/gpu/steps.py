"""What `make gpu-bench` runs, in order: the most telling first, because time may end. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Server = Literal["imports", "vllm serve", "modelfleet"]
Caches = Literal["empty", "filled", "sealed"]

SMALL_START_S = 45.0
"""Less than any start on a card took (66.9 s with filled caches, H100, 2026-11-27): with less left none is begun."""


@dataclass(frozen=True)
class Step:
    """One start of one server, and whether loads follow.

    `executor` is vLLM's, `caches` those of its compilers, `bytecode` whether Python finds any. Steps with the same
    `cache` share a folder: the first fills it, and the one with sealed caches seals what is there. `left_out` says why
    a step cannot run here.
    """

    server: Server
    executor: Literal["uni", "ray", "mp"] = "uni"
    cards: int = 1
    caches: Caches = "empty"
    bytecode: bool = True
    loads: bool = True
    left_out: str = ""

    @property
    def name(self) -> str:
        """How the record and the table call it."""
        if self.server == "imports":
            return "imports"
        cards = f", {self.cards} cards" if self.cards > 1 else ""
        bytecode = "" if self.bytecode else ", no bytecode"
        return f"{self.server}, {self.executor}{cards}, caches {self.caches}{bytecode}"

    @property
    def cache(self) -> str:
        """The folder of its caches."""
        return f"{self.server}-{self.executor}-{self.cards}".replace(" ", "-") + ("" if self.bytecode else "-bare")


def steps(cards: int, *, pretended: bool) -> list[Step]:
    """All steps for a machine with so many cards. Those that cannot run there are among them, with the reason.

    `vllm serve` runs at the begin and at the end of what it is compared with, so that a card that gets slower as it
    warms up shows.
    """
    no_ray = "vLLM's CPU build has no Ray executor" if pretended else ""
    one_card = f"this machine has {cards} card" if cards < 2 else ""
    many = max(cards, 2)
    return [
        Step("imports", loads=False),
        Step("vllm serve"),
        Step("modelfleet"),
        Step("modelfleet", "ray", left_out=no_ray),
        Step("modelfleet", caches="filled"),
        Step("vllm serve", caches="filled"),
        Step("vllm serve", "mp", many, left_out=one_card),
        Step("modelfleet", "mp", many, left_out=one_card),
        Step("modelfleet", "ray", many, left_out=one_card or no_ray),
        Step("modelfleet", caches="sealed", loads=False),
        Step("modelfleet", bytecode=False, loads=False),
    ]
