"""How many replicas a model needs: Ray Serve's controller asks `ScalingPolicy` several times a second.

Ray Serve's own policy averages the requests that replicas work on over 30 s, waits 30 s more, and does not see those
that wait: at most `max_ongoing_requests / target_ongoing_requests` times as many replicas are asked for at once, so a
burst climbs through one cold start after another (Ray 2.60 `serve/autoscaling_policy.py`; a replica's
`running_requests` are those that have a place, `serve/_private/replica.py`, `_start_request`).

Serve pickles this module by value into its controller (Ray 2.60 `serve/config.py`,
`AutoscalingPolicy.serialize_policy`), which has none of our code; in a cluster it also imports this one file, which the
head mounts: import nothing of modelfleet here.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

Follows = Literal["requests", "time_to_first_token", "kv_use"]

QUEUES_VARIABLE = "MODELFLEET_GATEWAY_QUEUES"
"""`host:port` at which every gateway process says how many requests wait, or the path of a file with that.

The host may have several addresses.
"""

SAMPLE_S = 0.5
"""Seconds between two looks: half of a replica's own interval, so that none is missed."""

SPEED_WINDOW_S = 120.0
"""Seconds over which it is measured how long an answer takes: longer than most."""

ARRIVALS_WINDOW_S = 10.0
"""Seconds over which arrivals are counted."""

CALM_S = 60.0
"""Seconds over which load is averaged while no request waits: the few requests of a moment come by chance."""

DRAIN_S = 60.0
"""Seconds in which waiting requests are worked off, beside those that arrive meanwhile."""

ENOUGH = 5
"""Answers from which on their mean time says something."""

MOST_GROWTH, LEAST_LEFT, CALM = 2.0, 0.5, 0.8
"""Time to first token: at most twice and at least half as many replicas in one step, and none within 20 % below."""

FETCH_TIMEOUT_S = 2.0
logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Aim:
    """What a model file's `autoscaling_config` asks for; `target` is in s for time to first token, a share for KV use.

    `requests` are running requests per replica, and `places` the most of them. The delays are in seconds; `to_zero_s`
    holds for the last replica.
    """

    follows: Follows
    requests: float
    places: int
    target: float
    up_s: float
    down_s: float
    to_zero_s: float


@dataclass(frozen=True)
class Sample:
    """One look at a model. `finished` counts answers since the first look and never falls.

    `waiting` are requests without a place at a replica: at the gateway, at Serve, or at a full replica. `ttft_s` is the
    mean time to first token since the last look, None without one; `kv_use` the mean share of KV blocks in use.
    """

    at: float
    replicas: int
    running: float
    waiting: float
    finished: float
    ttft_s: float | None = None
    kv_use: float | None = None


@dataclass(frozen=True)
class Want:
    """Replicas that a moment asks for: `now` as it is where requests wait, and the `mean` of the last `CALM_S`.

    `held` is the least `now` of the last `up_s`, or the mean if that is more: no chance of a moment.
    """

    at: float
    now: float
    mean: float
    held: float


def wanted(samples: Sequence[Sample], aim: Aim) -> float:
    """Replicas that the latest of `samples` asks for, not rounded."""
    now = samples[-1]
    if aim.follows == "requests":
        return _for_requests(samples, aim)
    queue = now.waiting / aim.requests
    if aim.follows == "kv_use":
        return now.replicas * (now.kv_use or 0.0) / aim.target + queue
    recent = [one.ttft_s for one in _since(samples, now.at - ARRIVALS_WINDOW_S) if one.ttft_s is not None]
    if not recent:  # nobody had a first token, perhaps because nobody asked
        return (now.replicas if now.running else 0.0) + queue
    ratio = sum(recent) / len(recent) / aim.target
    held = 1.0 if CALM <= ratio <= 1.0 else min(max(ratio, LEAST_LEFT), MOST_GROWTH)
    return now.replicas * held + (queue if ratio > 1.0 else 0.0)


def _for_requests(samples: Sequence[Sample], aim: Aim) -> float:
    """Replicas for all that run and wait.

    Once requests have waited for longer than an answer takes, more wait than are ever in progress at a time. Then it is
    what arrives per second times the seconds of an answer (Little's law), and at least as many replicas as empty the
    queue within `DRAIN_S` when each works on all that it can.
    """
    now = samples[-1]
    present = (now.running + now.waiting) / aim.requests
    seconds, rate = _answer_s(_since(samples, now.at - SPEED_WINDOW_S)), _arrivals(samples)
    if not now.waiting or seconds is None or rate is None:
        return present
    to_drain = seconds * (rate + now.waiting / DRAIN_S) / aim.places
    return min(present, max(seconds * rate / aim.requests, to_drain))


def _answer_s(samples: Sequence[Sample]) -> float | None:
    """Mean seconds of an answer at a replica; None while too few have ended."""
    finished = samples[-1].finished - samples[0].finished
    if finished < ENOUGH:
        return None
    worked = sum(one.running * (after.at - one.at) for one, after in pairwise(samples))
    return worked / finished


def _arrivals(samples: Sequence[Sample]) -> float | None:
    """Requests that come per second; None before there is a window."""
    now, window = samples[-1], _since(samples, samples[-1].at - ARRIVALS_WINDOW_S)
    first = window[0]
    if now.at - first.at < ARRIVALS_WINDOW_S / 2:
        return None
    come = now.finished - first.finished + now.running + now.waiting - first.running - first.waiting
    return max(0.0, come) / (now.at - first.at)


def _since(samples: Sequence[Sample], start: float) -> list[Sample]:
    return list(takewhile(lambda one: one.at >= start, reversed(samples)))[::-1]


def settled(wants: Sequence[Want], target: int, aim: Aim) -> int:
    """The number of replicas after the delays; `target` is what is asked for now.

    More once all of the last `up_s` wanted more, as many as its least; fewer once all of the last `down_s` wanted
    fewer, as many as its most. So a dip removes nothing, and a replica that has just been asked for stays. Without
    requests that wait there is no hurry: then it is the mean of `CALM_S` that must want more, for as long again.
    """
    now, first = wants[-1], wants[0].at
    if now.at - first >= aim.up_s:
        steady = min(one.mean for one in _last(wants, max(CALM_S, aim.up_s)))
        if (more := _rounded(max(steady, now.held if now.held > now.mean else 0.0))) > target:
            return more
    if target <= 1 and now.at - first >= aim.to_zero_s and not any(one.mean for one in _last(wants, aim.to_zero_s)):
        return 0
    if now.at - first < aim.down_s:
        return target
    return min(max(1, _rounded(max(one.held for one in _last(wants, aim.down_s)))), target)


def _last(wants: Sequence[Want], seconds: float) -> Iterator[Want]:
    start = wants[-1].at - seconds
    return takewhile(lambda one: one.at >= start, reversed(wants))


def _rounded(replicas: float) -> int:
    """Up, but not for what sums of floats leave."""
    return math.ceil(replicas - 1e-6)


@dataclass(frozen=True)
class WeekTable:
    """What a schedule says over a week: rows of (minute of the week, fewest, most replicas) by the clock of `zone`.

    Monday 00:00 is minute 0. Rows are sorted, each minute once. None leaves a bound as it is.
    """

    zone: str
    rows: tuple[tuple[int, int | None, int | None], ...]

    def at(self, now: float) -> tuple[int | None, int | None]:
        """The bounds of the row that began last, `now` in seconds since 1970.

        A row that falls into the hour which spring leaves out begins at its end. In the hour which autumn has twice,
        each row begins the first time and lasts: the second time nothing begins.
        """
        local = datetime.fromtimestamp(now, ZoneInfo(self.zone))
        while local.fold:  # the second time: what counts is the last minute of the first time
            now -= 60
            local = datetime.fromtimestamp(now, ZoneInfo(self.zone))
        minute = local.weekday() * 1440 + local.hour * 60 + local.minute
        began = [row for row in self.rows if row[0] <= minute] or self.rows  # or the last one of the week before
        return began[-1][1:]


@dataclass(frozen=True)
class Schedule:
    """A model's fewest and most replicas by time: its file's own, by its table, and no more than the stack's table.

    It has no state, so that whatever restarts finds the bounds of the moment.
    """

    fewest: int
    most: int
    own: WeekTable | None = None
    stack: WeekTable | None = None

    @classmethod
    def of(cls, kwargs: dict[str, Any]) -> Schedule:
        """From JSON."""
        tables = {
            name: WeekTable(table["zone"], tuple(tuple(row) for row in table["rows"]))
            for name in ("own", "stack")
            if (table := kwargs.get(name))
        }
        return cls(kwargs["fewest"], kwargs["most"], **tables)

    def at(self, now: float) -> tuple[int, int]:
        """Fewest and most replicas at `now`, in seconds since 1970. Raises ZoneInfoNotFoundError."""
        own_fewest, own_most = self.own.at(now) if self.own else (None, None)
        return self._capped((own_fewest, own_most), self.stack.at(now) if self.stack else (None, None))

    def _capped(self, own: tuple[int | None, int | None], cap: tuple[int | None, int | None]) -> tuple[int, int]:
        most = self.most if own[1] is None else own[1]
        most = most if cap[1] is None else min(most, cap[1])
        fewest = self.fewest if own[0] is None else own[0]
        fewest = fewest if cap[0] is None else min(fewest, cap[0])
        return min(fewest, most), most

    @property
    def span(self) -> tuple[int, int]:
        """Fewest and most replicas of the whole week. Some hour need not have both."""
        nothing: tuple[tuple[int, int | None, int | None], ...] = ((0, None, None),)
        pairs = [
            self._capped(own[1:], cap[1:])
            for own in (self.own.rows if self.own else nothing)
            for cap in (self.stack.rows if self.stack else nothing)
        ]
        return min(fewest for fewest, _ in pairs), max(most for _, most in pairs)


class ScalingPolicy:
    """Serve's custom policy: one for each model, in Serve's controller, for as long as its configuration holds.

    Serve keeps `min_replicas` and `max_replicas`, and applies the file's scaling factors to the answer.

    Applications of a newer release may give a controller that imported this before keys that it does not know: they
    have no effect until the head starts again. A new key needs a default, for the other way round.
    """

    def __init__(self, *, schedule: dict[str, Any] | None = None, **aim: Any) -> None:
        known = {field.name for field in fields(Aim)}
        if unknown := sorted(set(aim) - known):
            logger.warning("this head is older than its models: %s have no effect before it starts again", unknown)
        self._aim = Aim(**{key: value for key, value in aim.items() if key in known})
        self._schedule = Schedule.of(schedule) if schedule else None
        try:
            self._bounds(time.time())
        except ZoneInfoNotFoundError as error:
            # Better the file's own bounds than no policy at all.
            logger.error(
                "the schedule has no effect, because this machine knows no time zone %s: install tzdata", error
            )
            self._schedule = None
        self._samples: deque[Sample] = deque()
        self._raw: deque[tuple[float, float]] = deque()
        self._wants: deque[Want] = deque()
        self._seen: dict[str, dict[str, float]] = {}
        self._finished = 0.0
        self._gateway: dict[str, float] = {}
        self._asking: threading.Thread | None = None
        self._told = False

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Serve's question; `ctx` is its `AutoscalingContext`."""
        now = time.time() if ctx.current_time is None else ctx.current_time
        if not self._samples or now - self._samples[-1].at >= SAMPLE_S:
            self._ask_gateway(ctx.app_name)
            self._note(self._sample(now, ctx))
        fewest, most = self._bounds(now)
        if not ctx.current_num_replicas and not ctx.target_num_replicas:
            return fewest, {}  # asleep: Serve itself wakes it for a request, and else only its schedule
        wanted_now = settled(self._wants, ctx.target_num_replicas, self._aim)
        return (wanted_now if self._schedule is None else min(max(wanted_now, fewest), most)), {}

    def _bounds(self, now: float) -> tuple[int, int]:
        """Those of the schedule; without one Serve keeps the file's."""
        return self._schedule.at(now) if self._schedule else (0, 0)

    def _note(self, sample: Sample) -> None:
        self._samples.append(sample)
        while self._samples[0].at < sample.at - SPEED_WINDOW_S:
            self._samples.popleft()
        raw = wanted(self._samples, self._aim)
        self._raw.append((sample.at, raw))
        while self._raw[0][0] < sample.at - CALM_S:
            self._raw.popleft()
        mean = sum(replicas for _, replicas in self._raw) / len(self._raw)
        now = raw if sample.waiting else min(raw, mean)
        start = sample.at - self._aim.up_s
        before = (one.now for one in takewhile(lambda one: one.at >= start, reversed(self._wants)))
        self._wants.append(Want(sample.at, now, mean, held=max(mean, min((now, *before)))))
        longest = max(self._aim.up_s, self._aim.down_s, self._aim.to_zero_s, CALM_S)
        while len(self._wants) > 1 and self._wants[1].at <= sample.at - longest:
            self._wants.popleft()

    def _sample(self, now: float, ctx: Any) -> Sample:
        latest = {
            name: {str(replica): series[-1].value for replica, series in of.items() if series}
            for name, of in (ctx.raw_metrics or {}).items()
        }
        said = {name: sum(of.values()) for name, of in latest.items()}
        first_tokens, first_token_s = self._grown(latest, "first_tokens"), self._grown(latest, "first_token_s")
        self._finished += self._grown(latest, "finished")
        used = latest.get("kv_use", {})
        return Sample(
            at=now,
            replicas=ctx.current_num_replicas,
            running=said.get("running_requests", 0.0),
            waiting=said.get("waiting", 0.0) + (ctx.total_queued_requests or 0.0) + self._gateway.get("waiting", 0.0),
            finished=self._finished,
            ttft_s=first_token_s / first_tokens if first_tokens else None,
            kv_use=sum(used.values()) / len(used) if used else None,
        )

    def _grown(self, latest: dict[str, dict[str, float]], name: str) -> float:
        """By how much a counter of the replicas grew since the last look; replicas come and go."""
        counts, before = latest.get(name, {}), self._seen.get(name, {})
        self._seen[name] = counts
        return sum(max(0.0, value - before.get(replica, 0.0)) for replica, value in counts.items())

    def _ask_gateway(self, slug: str) -> None:
        """In a thread of its own: the controller must not wait. The answer counts at the next look."""
        place = os.environ.get(QUEUES_VARIABLE)
        if place and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self._fetch, args=(place, slug), daemon=True)
            self._asking.start()

    def _fetch(self, place: str, slug: str) -> None:
        try:
            self._gateway = {"waiting": waiting_at(addresses(place), slug)}
        except (OSError, ValueError) as error:
            if self._gateway or not self._told:
                self._told = True
                logger.warning("the gateway does not say how many requests wait for %s: %s", slug, error)
            self._gateway = {}


def addresses(place: str) -> list[tuple[str, int]]:
    """All addresses of `host:port`, or of what stands in the file with that path. Raises OSError or ValueError.

    A headless Service has one for each gateway pod.
    """
    if place.startswith("/"):
        place = Path(place).read_text(encoding="utf-8").strip()
    host, _, port = place.rpartition(":")
    found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    return sorted({(str(address[0]), int(address[1])) for *_, address in found})


def waiting_at(gateways: Iterable[tuple[str, int]], slug: str) -> float:
    """Requests that wait for the model at all gateways together. Raises OSError or ValueError."""
    total = 0.0
    for host, port in gateways:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}/queues/{slug}"
        with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_S) as answer:
            total += float(answer.read())
    return total
