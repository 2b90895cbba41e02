"""A SIMULATOR of one model's replicas: no Serve, no engine, no clock. Both policies are the real code of each.

`python -m tools.scaling` prints its table; `replay` plays the same traces to Serve's own controller.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tools.scaling.traces import MOST, PLACES, TARGET, Trace

TICK_S = 1.0
FIRST_TOKEN_S = 0.2


@dataclass
class Replica:
    """One replica; `ready` is the second at which it takes requests."""

    ready: float
    running: int = 0
    own_queue: deque[int] = field(default_factory=deque)
    leaving: bool = False


@dataclass(frozen=True)
class Point:
    """One second of a run: replicas that are there and that are asked for, and requests in progress and waiting."""

    at: float
    ready: int
    target: int
    running: int
    waiting: int


@dataclass(frozen=True)
class Outcome:
    """What a run cost and what its clients waited. Seconds to the first token are by request, in order of arrival."""

    trace: Trace
    replica_hours: float
    ttft_s: tuple[float, ...]
    course: tuple[Point, ...]

    def p95(self) -> float:
        """Of the requests of bursts; of all where the trace has none."""
        spans = self.trace.busy or ((0.0, self.trace.seconds),)
        inside = sorted(
            wait
            for one, wait in zip(self.trace.arrivals, self.ttft_s, strict=True)
            if any(a <= one.at < b for a, b in spans)
        )
        return inside[int(0.95 * (len(inside) - 1))]


def run(trace: Trace, policy: str, *, start_s: float, one_queue: bool = True) -> Outcome:
    """Plays `trace` with a policy of the model file. Without `one_queue` a request waits at the replica it came to."""
    return _Run(trace, policy, start_s, one_queue).play()


class _Run:
    """The state of a run."""

    def __init__(self, trace: Trace, policy: str, start_s: float, one_queue: bool) -> None:
        self.trace, self.start_s, self.one_queue = trace, start_s, one_queue
        self.replicas = [Replica(0.0)]
        self.queue: deque[int] = deque()
        self.waits = [0.0] * len(trace.arrivals)
        self.ends: list[tuple[float, int, Replica]] = []
        self.finished, self.cost_s, self.target = 0, 0.0, 1
        self.policy = _Policy(policy)
        self.course: list[Point] = []

    def play(self) -> Outcome:
        """Second by second until all are answered."""
        coming, number, now = self.trace.arrivals, 0, 0.0
        while now < self.trace.seconds or number < len(coming) or self.ends:
            until = now + TICK_S
            while True:
                ends = self.ends[0][0] if self.ends else float("inf")
                comes = coming[number].at if number < len(coming) else float("inf")
                at = min(ends, comes)
                if at >= until:
                    break
                if ends <= comes:
                    _, _, replica = heapq.heappop(self.ends)
                    replica.running -= 1
                    self.finished += 1
                else:
                    self._arrive(number, at)
                    number += 1
                self._begin(at)
            now = until
            self._begin(now)
            self._tick(now)
        hours = self.cost_s / 3600
        return Outcome(self.trace, hours, tuple(wait + FIRST_TOKEN_S for wait in self.waits), tuple(self.course))

    def _usable(self, now: float) -> list[Replica]:
        return [one for one in self.replicas if one.ready <= now and not one.leaving]

    def _arrive(self, number: int, at: float) -> None:
        usable = self._usable(at)
        if self.one_queue or not usable:
            self.queue.append(number)
        else:
            min(usable, key=lambda one: one.running + len(one.own_queue)).own_queue.append(number)

    def _begin(self, now: float) -> None:
        """Gives waiting requests their places."""
        for one in self.replicas:
            while one.own_queue and one.running < PLACES:
                self._place(one.own_queue.popleft(), one, now)
        usable = self._usable(now)
        while self.queue and usable:
            free = min(usable, key=lambda one: one.running)
            if free.running >= PLACES:
                return
            self._place(self.queue.popleft(), free, now)

    def _place(self, number: int, replica: Replica, now: float) -> None:
        arrival = self.trace.arrivals[number]
        replica.running += 1
        self.waits[number] = now - arrival.at
        heapq.heappush(self.ends, (now + arrival.answer_s, number, replica))

    def _tick(self, now: float) -> None:
        """Asks the policy, and starts or stops replicas as Serve does."""
        self.replicas = [one for one in self.replicas if not one.leaving or one.running or one.own_queue]
        self.cost_s += TICK_S * len(self.replicas)
        usable = self._usable(now)
        waiting = len(self.queue) + sum(len(one.own_queue) for one in self.replicas)
        running = sum(one.running for one in self.replicas)
        self.course.append(Point(now, len(usable), self.target, running, waiting))
        self.target = min(MOST, max(1, self.policy.ask(now, usable, self.target, waiting, self.finished)))
        here = [one for one in self.replicas if not one.leaving]
        for _ in range(self.target - len(here)):
            self.replicas.append(Replica(now + self.start_s))
        # Serve stops first what has not started, then what has the fewest requests.
        for one in sorted(here, key=lambda one: (one.ready <= now, one.running))[: max(0, len(here) - self.target)]:
            one.leaving = True


class _Policy:
    """A policy of the model file, behind Serve's own wrapper, which applies bounds, factors and delays."""

    def __init__(self, name: str) -> None:
        from ray.serve import autoscaling_policy as serve
        from ray.serve.config import AutoscalingConfig as ServeConfig

        from modelfleet.serving.config.schema import AutoscalingConfig
        from modelfleet.serving.config.serve_options import autoscaling_options
        from modelfleet.serving.scaling import ScalingPolicy

        data = {"policy": name, "min_replicas": 1, "max_replicas": MOST, "target_ongoing_requests": TARGET}
        options = autoscaling_options(AutoscalingConfig.model_validate(data), PLACES)
        kwargs = options.pop("policy", {}).get("policy_kwargs")
        self.config = ServeConfig(**options)
        # Serve's own is called without its guard for a model without a replica, which a run never is.
        own: Callable[[Any], Any] = ScalingPolicy(**kwargs) if kwargs else serve.replica_queue_length_autoscaling_policy
        self.decide = serve._apply_autoscaling_config(own)
        self.serve = serve
        self.state: dict[str, Any] = {}
        self.reports: deque[tuple[float, float]] = deque()

    def ask(self, now: float, usable: list[Replica], target: int, waiting: int, finished: int) -> int:
        """Replicas wanted; Serve's own policy gets the mean of what replicas reported, as in its controller."""
        running = sum(one.running for one in usable)
        self.reports.append((now, running))
        while self.reports[0][0] < now - self.config.look_back_period_s:
            self.reports.popleft()
        context = SimpleNamespace(
            app_name="simulated",
            current_time=now,
            config=self.config,
            current_num_replicas=len(usable),
            target_num_replicas=target,
            total_num_requests=sum(value for _, value in self.reports) / len(self.reports),
            total_queued_requests=0.0,
            policy_state=self.state,
            raw_metrics={
                "running_requests": {id(one): [SimpleNamespace(value=one.running)] for one in usable},
                "waiting": {0: [SimpleNamespace(value=waiting)]},
                "finished": {0: [SimpleNamespace(value=finished)]},
            },
        )
        with _clock(self.serve, now):
            replicas, self.state = self.decide(context)
        return int(replicas)


@contextmanager
def _clock(serve: Any, now: float) -> Iterator[None]:
    """Serve measures its delays with `time.time()`."""
    real, serve.time = serve.time, SimpleNamespace(time=lambda: now)
    try:
        yield
    finally:
        serve.time = real
