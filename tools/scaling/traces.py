"""Seeded traces: when requests arrive and how long each takes at a replica.

Load is in replicas: how many a model needs so that each works on `target_ongoing_requests` requests.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

#: Mean seconds of an answer, and how many of them a replica works on at its target and at most.
ANSWER_S, TARGET, PLACES = 8.0, 4, 10
MOST = 12
"""Most replicas."""


@dataclass(frozen=True)
class Arrival:
    """One request: the second at which it comes, and the seconds of its answer."""

    at: float
    answer_s: float


@dataclass(frozen=True)
class Trace:
    """A named load of `seconds`. `busy` are its bursts, in seconds."""

    name: str
    seconds: float
    arrivals: tuple[Arrival, ...]
    busy: tuple[tuple[float, float], ...] = ()

    def until(self, seconds: float) -> Trace:
        """Its beginning."""
        arrivals = tuple(one for one in self.arrivals if one.at < seconds)
        return Trace(self.name, seconds, arrivals, tuple(span for span in self.busy if span[0] < seconds))


def _trace(
    name: str,
    seconds: float,
    load: Callable[[float], float],
    *,
    seed: int = 25,
    busy: tuple[tuple[float, float], ...] = (),
) -> Trace:
    """Poisson arrivals at a rate that changes, by thinning; answers are exponential and at least a second long."""
    chance = random.Random(f"{name} {seed}")
    highest = MOST * TARGET / ANSWER_S
    arrivals: list[Arrival] = []
    at = 0.0
    while (at := at + chance.expovariate(highest)) < seconds:
        if chance.random() * MOST < load(at):
            arrivals.append(Arrival(at, 1.0 + chance.expovariate(1 / (ANSWER_S - 1.0))))
    return Trace(name, seconds, tuple(arrivals), busy)


def burst(seed: int = 25, faster: float = 1.0) -> Trace:
    """An hour at half a replica's load with three bursts of ten minutes that need eight."""
    busy = tuple((start / faster, (start + 600.0) / faster) for start in (300.0, 1500.0, 2700.0))
    return _trace(
        "burst", 4200.0 / faster, lambda at: 8.0 if any(a <= at < b for a, b in busy) else 0.5, seed=seed, busy=busy
    )


def day(seed: int = 25, faster: float = 1.0) -> Trace:
    """A day's curve in four hours: from a third of a replica to eight and back."""
    long = 14400.0 / faster
    return _trace("day", long, lambda at: 0.3 + 7.7 * (1 - math.cos(2 * math.pi * at / long)) / 2, seed=seed)


def rise(seed: int = 25, faster: float = 1.0) -> Trace:
    """From one replica to eight in an hour, then twenty minutes at eight."""
    return _trace("slow rise", 4800.0 / faster, lambda at: min(8.0, 1.0 + 7.0 * at * faster / 3600.0), seed=seed)


#: `faster` leaves answers as long and the load as high as they are: what it shortens is the time in which that changes.
ALL: tuple[Callable[..., Trace], ...] = (burst, day, rise)
