"""What an edit of a model does to its clients: whether its next replica starts before an old one stops, and if not, for
how long the model has none.

Ray Serve 2.60 does either. With `max_surge_percent` above 0 it starts the next replica first and keeps the old one
where there is no room for it; with 0 it stops a fifth of the replicas, at least one, and starts as many
(`ray/serve/_private/deployment_state.py`, `_surge_replicas_to_start`, `_rollout_size`). So a surge without room would
wait forever, and the plan asks for one only where it has room. Both numbers below go to Serve beside the model's
arguments (`ServeApplication.options`): Serve takes them without another replica, so that a model which comes or goes
may change another's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelfleet.infra.planning.candidates import PoolChoice
from modelfleet.infra.planning.demand import Demand, nodes_for
from modelfleet.infra.planning.packing import Steps, copies, room_left
from modelfleet.infra.planning.plan import Gap
from modelfleet.infra.planning.pool_findings import cache_gib, caches_gib
from modelfleet.infra.planning.start_up import UNKNOWN_START_MINUTES, StartUp
from modelfleet.infra.stack import StackConfig, Target
from modelfleet.serving.config.errors import Finding, Severity

#: Serve's own step of a rolling update (`DEFAULT_ROLLING_UPDATE_PERCENTAGE`): one of up to five, two of ten.
SURGE_PERCENT: Final = 20
#: How long a worker may finish its requests before it is killed, if the update of its node waits for it; and what of
#: that time is left to Ray, to stop what does not end by itself.
GRACE_SECONDS, STOP_SECONDS = 900, 60


def shutdown_s(demand: Demand, config: StackConfig) -> float:
    """Seconds that a replica which ends gives its open streams: the file's, else the longest that a request may take.

    Never more than the drain of a node leaves, or a stream would be promised what its node cuts.
    """
    own = demand.model.config.deployment_config.graceful_shutdown_timeout_s
    return float(_longest_stream_s(config)) if own is None else own


def _longest_stream_s(config: StackConfig) -> int:
    return min(config.gateway.timeout_s, drain_s(config.target) or config.gateway.timeout_s)


def drain_s(target: Target) -> int | None:
    """Seconds that the drain of a node leaves to replicas; None on this machine, where nothing drains."""
    if target.on_this_machine:
        return None
    return min(GRACE_SECONDS, target.longest_drain_s or GRACE_SECONDS) - STOP_SECONDS


@dataclass(frozen=True)
class Room:
    """Whether a pool holds one replica more of a model beside the fewest of all others.

    Then `missing` is empty; else it says what is missing, and `way` what makes room. `always`: surely beside the most,
    too; an edited model has one replica at least.
    """

    missing: str
    way: str
    always: bool


class Rooms:
    """The `Room` of each model. A pool is packed once for everybody's fewest and once for their most."""

    def __init__(self, config: StackConfig) -> None:
        self._config = config
        self._left: dict[tuple[str, bool], Sequence[tuple[Steps, int]]] = {}
        self._in_pieces: dict[str, bool] = {}

    def room(self, choice: PoolChoice, demand: Demand, *, memory_short: bool) -> Room:
        """`memory_short`: this machine's memory does not hold one replica more."""
        if not self._fits(choice, demand, most=False):
            return Room(*_missing(choice, demand, self._config), always=False)
        if not _caches_fit(choice, demand):
            way = "write a smaller one, or use a larger node"
            return Room("a node's /dev/shm holds no cache more (kv_offloading_size)", way, always=False)
        if memory_short:
            way = "serve fewer models here, or on a machine with more"
            return Room("this machine's memory holds no replica more", way, always=False)
        return Room("", "", self._fits(choice, demand, most=True))

    def _fits(self, choice: PoolChoice, demand: Demand, *, most: bool) -> bool:
        """Whether one replica more fits beside the fewest or the most of all; of a model that may have none, two."""
        room = choice.candidate.room
        limit = 1 if self._config.target.on_this_machine else choice.pool.max_nodes
        needed = choice.need_at_max if most else choice.need_at_min
        more = 1 + (_replicas(demand, most) == 0)
        if needed > limit:
            return False
        if self._has_pieces(choice):  # which may have to be apart
            counts = {one.model_id: _replicas(one, most) for one in choice.demands}
            counts[demand.model_id] += more
            return nodes_for(choice.demands, counts, room) <= limit
        key = choice.pool.name, most
        if key not in self._left:
            items = [(one.whole, _replicas(one, most)) for one in choice.demands]
            self._left[key] = room_left(items, room)
        found = (limit - needed) * copies(demand.whole, room)
        return found >= more or found + sum(nodes * copies(demand.whole, one) for one, nodes in self._left[key]) >= more

    def _has_pieces(self, choice: PoolChoice) -> bool:
        """Whether a replica of the pool is more than one piece for a node; asked once a pool, not once a model."""
        name, room = choice.pool.name, choice.candidate.room
        if name not in self._in_pieces:
            self._in_pieces[name] = any(len(one.pieces(room)) > 1 for one in choice.demands)
        return self._in_pieces[name]


def _caches_fit(choice: PoolChoice, demand: Demand) -> bool:
    """Whether /dev/shm holds the caches of all that an edit of this model may bring together on one node.

    Ray does not count /dev/shm: it puts the next replica wherever CPUs and GPUs are free, and vLLM ends there.
    """
    room_gib = caches_gib(choice)
    if room_gib is None or not cache_gib(demand):
        return True
    asked = demand.model.config.deployment_config.max_surge_percent
    surge = math.ceil((SURGE_PERCENT if asked is None else asked) * max(demand.max, 1) / 100)
    caches = [
        (one.whole, one.max + (surge if one is demand else 0), cache_gib(one))
        for one in choice.demands
        if cache_gib(one)
    ]
    return _most_gib(caches, choice.candidate.room) <= room_gib


def _most_gib(caches: Sequence[tuple[Steps, int, float]], room: Steps) -> float:
    """The most GiB of caches that replicas which fit `room` together have; of each (whole, replicas, GiB)."""
    if not caches:
        return 0.0
    (whole, replicas, gib), *others = caches
    return max(
        count * gib + _most_gib(others, {name: room[name] - count * whole.get(name, 0) for name in room})
        for count in range(min(replicas, copies(whole, room)) + 1)
    )


def _replicas(demand: Demand, most: bool) -> int:
    return max(demand.max, demand.min) if most else demand.min


def gap_of(demand: Demand, room: Room, config: StackConfig, *, start: StartUp | None) -> Gap:
    """The gap that an edit leaves, and the surge that avoids it; `start` is that of a replica."""
    asked = demand.model.config.deployment_config.max_surge_percent
    surge = asked if asked is not None else 0 if room.missing else SURGE_PERCENT
    drain = shutdown_s(demand, config)
    if surge:
        return Gap(0, "" if room.always else "an edit waits while the pool is full", room.way, surge, drain)
    if demand.min > 1:
        return Gap(0, f"its {demand.min} replicas change one after another", "", 0, drain)
    minutes = max(1, math.ceil(start.again_seconds / 60)) if start else UNKNOWN_START_MINUTES
    if room.missing:
        return Gap(minutes, room.missing, room.way, 0, drain)
    return Gap(minutes, "max_surge_percent is 0 in its file", "remove it there", 0, drain)


def gap_findings(demand: Demand, room: Room) -> list[Finding]:
    """A warning for a surge that the file asks for and that finds no room: the edit would not end."""
    asked = demand.model.config.deployment_config.max_surge_percent
    if not room.missing or not asked:
        return []
    message = (
        f"found {asked}, but {room.missing}, so an edit waits and the old replica serves on; {room.way}, or write 0"
    )
    path = ("deployment_config", "max_surge_percent")
    return [demand.model.document.finding(path, message, Severity.WARNING)]


def _missing(choice: PoolChoice, demand: Demand, config: StackConfig) -> tuple[str, str]:
    """Why there is no room for one replica more beside everybody's fewest, and what makes room."""
    more = {d.model_id: d.min for d in choice.demands} | {demand.model_id: max(demand.min, 1) + 1}
    if not config.target.on_this_machine:
        name, limit = choice.pool.name, choice.pool.max_nodes
        needed = max(nodes_for(choice.demands, more, choice.candidate.room), limit + 1)
        return (
            f"pool {name} has no room for one replica more (maxNodes {limit})",
            f"write maxNodes: {needed} for pool {name}",
        )
    wanted = {key: sum(more[d.model_id] * d.total.get(key, 0.0) for d in choice.demands) for key in ("GPU", "CPU")}
    if wanted["GPU"] > choice.candidate.offer.get("GPU", 0.0):
        gpus = math.ceil(wanted["GPU"])
        return (
            f"this machine has no GPU for one replica more (local.gpus {choice.candidate.offer['GPU']:g})",
            f"serve it on a machine with {gpus} GPUs, and write modelfleet:local.gpus: {gpus}",
        )
    return (
        f"this machine has no CPUs for one replica more (local.cpus {choice.candidate.offer['CPU']:g})",
        f"write modelfleet:local.cpus: {math.ceil(wanted['CPU'])}",
    )
