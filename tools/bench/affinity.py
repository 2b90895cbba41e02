"""Where conversations go: the real gateway in front of light replicas that model a prefix cache.

`python -m tools.bench.affinity` replays seeded traces through HAProxy as `infra/gateway` renders it, with `leastconn`
and with `prefix_cache_affinity`, and prints hit rate, time to first token and load for each number of replicas. The
replicas are stand-ins (`tools/bench/prefix_replica.py`); HAProxy, its configuration and the requests are real. On a
busy machine the times say nothing: `--virtual` replays the same traces without HAProxy, in virtual time. There, Ray's
prefix router may be compared too, and `one cache`, which no routing can beat: all replicas have all blocks.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
from rich.console import Console
from rich.table import Table

from modelfleet.infra.gateway import Runtime, render
from modelfleet.infra.local import haproxy
from modelfleet.infra.planning.plan import GatewayPlan, Route
from modelfleet.infra.stack.schema import Gateway
from modelfleet.serving.config.schema import DeploymentConfig
from tools.bench.conversations import Conversation, Shape, bodies, trace
from tools.bench.prefix_replica import BLOCK_TOKENS, PrefixCache, PrefixReplica, Speed
from tools.bench.ray_prefix import RayPrefix

#: The replica that gets a body.
Choose = Callable[[Sequence[PrefixReplica], dict[str, Any]], PrefixReplica]
MODEL = "org/model"
SLUG = "org--model"
#: Tokens that one replica's cache holds.
CACHE_TOKENS = 160_000
FIRST_PORT, GATEWAY_PORT, METRICS_PORT = 23_700, 23_690, 23_691
SHAPES = {
    "conversations": Shape(conversations=1200, over_s=120.0),
    "agents": Shape(over_s=48.0, turns=(4, 12), user_tokens=(100, 800)),
    "mixed": Shape(conversations=3500, over_s=120.0, alone=0.8),
    "unrelated": Shape(conversations=1000, over_s=24.0, alone=1.0),
}
LEASTCONN = 0
FACTOR: Final = DeploymentConfig().hash_balance_factor
ONE_CACHE = "one cache"
#: What only `--virtual` knows, beside percents of the mean.
ONLY_VIRTUAL: Final[Mapping[str, Callable[[], Choose]]] = {
    ONE_CACHE: lambda: partial(chosen, LEASTCONN),
    "ray": RayPrefix,
    "ray, imbalanced by 5": partial(RayPrefix, 5),
}


@dataclass(frozen=True)
class Outcome:
    """One replay. Times to first token in seconds; `load` is the busiest replica's requests by the mean of all."""

    trace: str
    balance: str
    replicas: int
    requests: int
    failed: int
    hit_rate: float
    ttft_mean_s: float
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


def in_virtual_time(name: str, conversations: Sequence[Conversation], replicas: int, balance: int | str) -> Outcome:
    """The same trace and replicas without HAProxy and without waiting: the clock jumps to what happens next.

    The choice of a replica is `gateway.lua`'s, in Python, or one of `ONLY_VIRTUAL`. A busy machine changes no figure.
    """
    servers = servers_of(replicas, None)
    if balance == ONE_CACHE:
        cache = PrefixCache(replicas * CACHE_TOKENS // BLOCK_TOKENS)
        for one in servers:
            one.cache = cache
    choose = ONLY_VIRTUAL[balance]() if isinstance(balance, str) else partial(chosen, balance)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        times = runner.run(_send(conversations, partial(_straight, servers, choose)))
    return _outcome(f"{name}, virtual", balance, servers, times)


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


async def _straight(servers: Sequence[PrefixReplica], choose: Choose, body: dict[str, Any]) -> tuple[float, bool]:
    clock = asyncio.get_running_loop().time
    first = clock()

    async def begin() -> None:
        nonlocal first
        first = clock()

    await choose(servers, body).serve(body, begin)
    return first, True


def chosen(factor: int, servers: Sequence[PrefixReplica], body: dict[str, Any]) -> PrefixReplica:
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


def _balance(text: str) -> int | str:
    """A percent, or one of `ONLY_VIRTUAL`; raises `argparse.ArgumentTypeError` for anything else."""
    if text.isascii() and text.isdecimal():
        return int(text)
    if text in ONLY_VIRTUAL:
        return text
    allowed = ", ".join(map(repr, ONLY_VIRTUAL))
    raise argparse.ArgumentTypeError(f"found {text!r}; allowed are a percent, 0 for leastconn, and {allowed}")


def _worded(balance: int | str) -> str:
    if isinstance(balance, str):
        return balance
    return f"affinity, {balance} %" if balance else "leastconn"


def _outcome(name: str, balance: int | str, servers: Sequence[PrefixReplica], times: Sequence[Times]) -> Outcome:
    first = statistics.quantiles([one.first_s for one in times], n=100)
    total = statistics.quantiles([one.total_s for one in times], n=100)
    tokens = sum(one.tokens for one in servers)
    return Outcome(
        trace=name,
        balance=_worded(balance),
        replicas=len(servers),
        requests=len(times),
        failed=sum(not one.ok for one in times),
        hit_rate=sum(one.cached_tokens for one in servers) / max(1, tokens),
        ttft_mean_s=statistics.fmean(one.first_s for one in times),
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
        for name in ("hit_rate", "ttft_mean_s", "ttft_p50_s", "ttft_p95_s", "total_p95_s", "load", "most_open")
    }
    counts = {name: sum(getattr(one, name) for one in runs) for name in ("requests", "failed")}
    return Outcome(**{**asdict(runs[0]), **means, **counts})


def table(outcomes: Sequence[Outcome]) -> Table:
    """The outcomes, one a row."""
    made = Table("trace", "balance", "replicas", "requests", "failed", "hit rate", "TTFT mean / p50 / p95 ms",
                 "total p95 ms", "busiest / mean", "most open")  # fmt: skip
    for one in outcomes:
        made.add_row(
            one.trace,
            one.balance,
            str(one.replicas),
            str(one.requests),
            str(one.failed),
            f"{one.hit_rate:.3f}",
            " / ".join(f"{1000 * time:.1f}" for time in (one.ttft_mean_s, one.ttft_p50_s, one.ttft_p95_s)),
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
    parser.add_argument(
        "--balances", nargs="*", type=_balance, default=[LEASTCONN, FACTOR],
        help=f"percents of the mean, 0 is leastconn; with --virtual also {', '.join(map(repr, ONLY_VIRTUAL))}",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="*", type=int, default=[1], help="each figure is the mean over them")
    parser.add_argument("--virtual", action="store_true", help="without HAProxy, in virtual time")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.virtual and (names := [one for one in arguments.balances if isinstance(one, str)]):
        parser.error(f"only with --virtual: {', '.join(names)}")
    outcomes, say = [], Console(stderr=True)
    for name in arguments.traces:
        traces = [trace(SHAPES[name], seed) for seed in arguments.seeds]
        for replicas in arguments.replicas:
            for balance in arguments.balances if replicas > 1 else [LEASTCONN]:
                say.print(f"{name}, {replicas} replicas, {_worded(balance)}")
                if arguments.virtual:
                    runs = [in_virtual_time(name, made, replicas, balance) for made in traces]
                else:
                    runs = [asyncio.run(replay(name, made, replicas, balance)) for made in traces]
                outcomes.append(mean_of(runs))
    if arguments.json:
        print(json.dumps([asdict(one) for one in outcomes], indent=2))
    else:
        Console(width=140).print(table(outcomes))


if __name__ == "__main__":
    main()
