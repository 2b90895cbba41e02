"""Where conversations go: the real gateway in front of light replicas that model a prefix cache.

`python -m tools.bench.affinity` replays seeded traces through HAProxy as `infra/gateway` renders it, with `leastconn`
and with `prefix_cache_affinity`, and prints hit rate, time to first token and load for each number of replicas. The
replicas are stand-ins (`tools/bench/prefix_replica.py`); HAProxy, its configuration and the requests are real. On a
busy machine the times say nothing: `--virtual` replays the same traces without HAProxy, in virtual time.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from modelfleet.infra.gateway import Runtime, render
from modelfleet.infra.local import haproxy
from modelfleet.infra.planning.plan import GatewayPlan, Route
from modelfleet.infra.stack.schema import Gateway
from tools.bench.conversations import Conversation, Shape, bodies, trace
from tools.bench.prefix_replica import BLOCK_TOKENS, PrefixCache, PrefixReplica, Speed

MODEL = "org/model"
SLUG = "org--model"
#: Tokens that one replica's cache holds.
CACHE_TOKENS = 160_000
FIRST_PORT, GATEWAY_PORT, METRICS_PORT = 23_700, 23_690, 23_691
SHAPES = {
    "conversations": Shape(),
    "mixed": Shape(conversations=700, over_s=24.0, alone=0.8),
    "unrelated": Shape(conversations=1000, over_s=24.0, alone=1.0),
}
LEASTCONN = 0


@dataclass(frozen=True)
class Outcome:
    """One replay. Times to first token in seconds; `load` is the busiest replica's requests by the mean of all."""

    trace: str
    balance: str
    replicas: int
    requests: int
    failed: int
    hit_rate: float
    ttft_p50_s: float
    ttft_p95_s: float
    total_p95_s: float
    load: float
    most_open: float


def gateway_of(factor: int, folder: Path, ports: tuple[int, int]) -> tuple[GatewayPlan, Runtime]:
    """A gateway with one model, whose replicas are on `ports`, first and last; `factor` 0 is leastconn."""
    route = Route(MODEL, SLUG, (MODEL, f"{MODEL}-lora"), hash_balance_factor=factor)
    runtime = Runtime(
        bind=f"127.0.0.1:{GATEWAY_PORT}",
        folder=str(folder / "files"),
        run_folder=str(folder / "run"),
        key_map=str(folder / "run/keys.map"),
        metrics_bind=f"127.0.0.1:{METRICS_PORT}",
        threads=1,
        replica_ports=ports,
    )
    return GatewayPlan((route,), "none", Gateway.model_validate({})), runtime


def servers_of(replicas: int, speed: Speed | None) -> list[PrefixReplica]:
    """So many replicas with empty caches."""
    return [
        PrefixReplica(FIRST_PORT + n, SLUG, PrefixCache(CACHE_TOKENS // BLOCK_TOKENS), speed or Speed())
        for n in range(replicas)
    ]


async def replay(
    name: str, conversations: Sequence[Conversation], replicas: int, factor: int, *, speed: Speed | None = None
) -> Outcome:
    """Sends a trace through a gateway of its own to so many replicas."""
    with tempfile.TemporaryDirectory(prefix="aff-") as made:
        folder = Path(made)
        plan, runtime = gateway_of(factor, folder, (FIRST_PORT, FIRST_PORT + replicas - 1))
        servers = servers_of(replicas, speed)
        for one in servers:
            await one.start()
        haproxy.write(render(plan, runtime, upstream="127.0.0.1:9"), runtime, None)
        processes = await asyncio.to_thread(haproxy.start, runtime, haproxy.find_binary(), folder / "log")
        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                times = await _send(conversations, partial(_over_http, session))
        finally:
            await asyncio.to_thread(haproxy.stop, processes, timeout_s=0.5)
            for one in servers:
                await one.stop()
    return _outcome(name, factor, servers, times)


def in_virtual_time(name: str, conversations: Sequence[Conversation], replicas: int, factor: int) -> Outcome:
    """The same trace and replicas without HAProxy and without waiting: the clock jumps to what happens next.

    The choice of a replica is `gateway.lua`'s, in Python. So a busy machine changes no figure.
    """
    servers = servers_of(replicas, None)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        times = runner.run(_send(conversations, partial(_straight, servers, factor)))
    return _outcome(f"{name}, virtual", factor, servers, times)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait for its timers."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]  # the standard library's own loop has it

        def jump(timeout: float | None = None) -> list[Any]:
            events: list[Any] = select(0)
            if not events and timeout:
                self._now += timeout
            return events

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._now


async def _straight(servers: Sequence[PrefixReplica], factor: int, body: dict[str, Any]) -> tuple[float, bool]:
    clock = asyncio.get_running_loop().time
    first = clock()

    async def begin() -> None:
        nonlocal first
        first = clock()

    await chosen(servers, factor, body).serve(body, begin)
    return first, True


def chosen(servers: Sequence[PrefixReplica], factor: int, body: dict[str, Any]) -> PrefixReplica:
    """The replica that the gateway would choose (`find_home`, then `balance leastconn`)."""
    began = [one["content"] for one in body["messages"][: 1 + (body["messages"][0]["role"] == "system")]]
    if factor and any(one["role"] == "assistant" for one in body["messages"]):
        most = (sum(one.open for one in servers) + 1) * factor
        ranked = sorted(servers, key=lambda one: hashlib.sha256(f"{began}{one.port}".encode()).digest(), reverse=True)
        for one in ranked:
            if one.open * len(servers) * 100 < most:
                return one
    return min(servers, key=lambda one: (one.open, one.requests))


@dataclass(frozen=True)
class Times:
    """Of one request: seconds to the first byte of its answer and to the last, and whether it was answered."""

    first_s: float
    total_s: float
    ok: bool


#: Sends one body; the loop's time of its first byte, and whether it was answered.
Send = Callable[[dict[str, Any]], Awaitable[tuple[float, bool]]]


async def _over_http(session: aiohttp.ClientSession, body: dict[str, Any]) -> tuple[float, bool]:
    async with session.post(f"http://127.0.0.1:{GATEWAY_PORT}/v1/chat/completions", json=body) as answer:
        await answer.content.readany()
        first = asyncio.get_running_loop().time()
        await answer.read()
        return first, answer.status == 200


async def _send(conversations: Sequence[Conversation], send: Send) -> list[Times]:
    clock = asyncio.get_running_loop().time
    begun = clock()

    async def talk(one: Conversation) -> list[Times]:
        await asyncio.sleep(max(0.0, one.start_s - (clock() - begun)))
        times = []
        for body, turn in zip(bodies(one, MODEL), one.turns, strict=True):
            sent = clock()
            first, ok = await send(body)
            times.append(Times(first - sent, clock() - sent, ok))
            await asyncio.sleep(turn.think_s)
        return times

    return [one for many in await asyncio.gather(*map(talk, conversations)) for one in many]


def _outcome(name: str, factor: int, servers: Sequence[PrefixReplica], times: Sequence[Times]) -> Outcome:
    first = statistics.quantiles([one.first_s for one in times], n=100)
    total = statistics.quantiles([one.total_s for one in times], n=100)
    tokens = sum(one.tokens for one in servers)
    return Outcome(
        trace=name,
        balance=f"affinity, {factor} %" if factor else "leastconn",
        replicas=len(servers),
        requests=len(times),
        failed=sum(not one.ok for one in times),
        hit_rate=sum(one.cached_tokens for one in servers) / max(1, tokens),
        ttft_p50_s=first[49],
        ttft_p95_s=first[94],
        total_p95_s=total[94],
        load=max(one.requests for one in servers) * len(servers) / max(1, len(times)),
        most_open=max(one.most_open for one in servers),
    )


def mean_of(runs: Sequence[Outcome]) -> Outcome:
    """The mean of each figure, of requests the sum; all runs are of one kind of trace."""
    means = {
        name: statistics.fmean(getattr(one, name) for one in runs)
        for name in ("hit_rate", "ttft_p50_s", "ttft_p95_s", "total_p95_s", "load", "most_open")
    }
    counts = {name: sum(getattr(one, name) for one in runs) for name in ("requests", "failed")}
    return Outcome(**{**asdict(runs[0]), **means, **counts})


def table(outcomes: Sequence[Outcome]) -> Table:
    """The outcomes, one a row."""
    made = Table("trace", "balance", "replicas", "requests", "failed", "hit rate", "TTFT p50 / p95 ms", "total p95 ms",
                 "busiest / mean", "most open")  # fmt: skip
    for one in outcomes:
        made.add_row(
            one.trace,
            one.balance,
            str(one.replicas),
            str(one.requests),
            str(one.failed),
            f"{one.hit_rate:.3f}",
            f"{1000 * one.ttft_p50_s:.0f} / {1000 * one.ttft_p95_s:.0f}",
            f"{1000 * one.total_p95_s:.0f}",
            f"{one.load:.2f}",
            f"{one.most_open:.0f}",
        )
    return made


def main() -> None:
    """Runs what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--replicas", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--factors", nargs="*", type=int, default=[LEASTCONN, 125], help="0 is leastconn")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1], help="each figure is the mean over them")
    parser.add_argument("--virtual", action="store_true", help="without HAProxy, in virtual time")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    outcomes, say = [], Console(stderr=True)
    for name in arguments.traces:
        traces = [trace(SHAPES[name], seed) for seed in arguments.seeds]
        for replicas in arguments.replicas:
            for factor in arguments.factors if replicas > 1 else [LEASTCONN]:
                say.print(f"{name}, {replicas} replicas, factor {factor}")
                if arguments.virtual:
                    runs = [in_virtual_time(name, made, replicas, factor) for made in traces]
                else:
                    runs = [asyncio.run(replay(name, made, replicas, factor)) for made in traces]
                outcomes.append(mean_of(runs))
    if arguments.json:
        print(json.dumps([asdict(one) for one in outcomes], indent=2))
    else:
        Console(width=140).print(table(outcomes))


if __name__ == "__main__":
    main()
