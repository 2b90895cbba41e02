"""`python -m tools.scaling.replay TRACE`: both policies under the real Ray Serve and gateway, at the same time.

Each policy has a model of its own with the same replicas, which wait instead of computing (`replica.py`), the same one
queue at the gateway and the same requests at the same moments, so what disturbs one disturbs the other. It plays in
real time: a policy's delays are seconds. `--fault SECOND:replica` kills a replica of each model then, and
`SECOND:gateway` the gateway, which starts again at once, as a kubelet would start it. Then it says what clients saw.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from modelfleet.infra.gateway import Runtime, render
from modelfleet.infra.local import haproxy
from modelfleet.infra.planning.plan import GatewayPlan, Route
from modelfleet.infra.stack.schema import Gateway as Settings
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.scaling import QUEUES_VARIABLE
from tools.bench import servers
from tools.bench.__main__ import FAST
from tools.bench.processes import wait_for
from tools.scaling.picture import draw
from tools.scaling.replica import START_VARIABLE
from tools.scaling.simulate import Outcome, Point
from tools.scaling.traces import ALL, MOST, PLACES, TARGET, Trace

POLICIES = ("ray_serve", "requests")
REPLICA_PORTS = 64
LOOK_S = 2.0
"""Seconds between two looks at Serve's replicas."""
DRAINED_S = 900.0
"""Seconds after which a request that has no answer counts as failed."""
AFTER_FAULT_S = 30.0
"""Seconds in which what fails is a fault's."""


@dataclass(frozen=True)
class Fault:
    """What is killed, and at which second of the trace."""

    at: float
    victim: str

    @classmethod
    def of(cls, text: str) -> Fault:
        """One of `SECOND:replica` or `SECOND:gateway`; raises `argparse.ArgumentTypeError` for anything else."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?):(replica|gateway)", text, re.ASCII)
        if found is None:
            raise argparse.ArgumentTypeError(f"found {text!r}; allowed are SECOND:replica and SECOND:gateway")
        return cls(float(found[1]), found[2])


@dataclass(frozen=True)
class Failure:
    """A request without its whole answer: when it ended, in seconds of the trace, and what its client saw."""

    at: float
    seen: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Replays, prints the table and writes the course of both."""
    parser = argparse.ArgumentParser(prog="python -m tools.scaling.replay", description=__doc__)
    parser.add_argument("trace", choices=[make().name for make in ALL])
    parser.add_argument("--seconds", type=float, help="play only so much of the trace")
    parser.add_argument("--faster", type=float, default=1.0, help="let the load change so many times as fast")
    parser.add_argument("--start", type=float, default=60.0, help="seconds that an engine takes to start")
    parser.add_argument("--port", type=int, default=9650, help="first of 200 ports")
    parser.add_argument("--json", type=Path, help="write the course of both policies to this file")
    parser.add_argument("--svg", type=Path, help="draw the course of both policies into this file")
    parser.add_argument("--fault", type=Fault.of, action="append", default=[], help="SECOND:replica or SECOND:gateway")
    options = parser.parse_args(arguments)
    trace = next(trace for make in ALL if (trace := make(faster=options.faster)).name == options.trace)
    played = trace.until(options.seconds) if options.seconds else trace
    found = replay(played, options.start, options.port, options.fault)
    print(f"{'trace':<10} {'policy':<12} {'replica-hours':>13} {'p95 first token':>16} {'failed':>7}")
    for name, (outcome, failed) in found.items():
        print(f"{trace.name:<10} {name:<12} {outcome.replica_hours:>13.2f} {outcome.p95():>14.1f} s {len(failed):>7}")
    for fault in options.fault:
        _say_fault(fault, found)
    if options.json:
        courses = {name: [asdict(point) for point in outcome.course] for name, (outcome, _) in found.items()}
        options.json.write_text(json.dumps(courses), encoding="utf-8")
    if options.svg:
        options.svg.write_text(draw({name: outcome for name, (outcome, _) in found.items()}), encoding="utf-8")
    return 0


def _say_fault(fault: Fault, found: dict[str, tuple[Outcome, list[Failure]]]) -> None:
    for name, (outcome, failed) in found.items():
        before = next((one for one in reversed(outcome.course) if one.at <= fault.at), outcome.course[0])
        seen = Counter(one.seen for one in failed if fault.at <= one.at < fault.at + AFTER_FAULT_S)
        last = max((one.at - fault.at for one in failed if fault.at <= one.at < fault.at + AFTER_FAULT_S), default=0.0)
        words = ", ".join(f"{count} {what}" for what, count in sorted(seen.items())) or "nothing"
        print(
            f"{fault.victim} killed at {fault.at:.0f} s, {name}: {before.ready} replicas, {before.running} running and "
            f"{before.waiting} waiting; clients saw {words}; the last {last:.1f} s after"
        )


def replay(
    trace: Trace, start_s: float, port: int, faults: Sequence[Fault] = ()
) -> dict[str, tuple[Outcome, list[Failure]]]:
    """Each policy's outcome and failed requests; raises `RuntimeError` with Serve's reason if a model never runs."""
    ports = servers.Ports(port, port + 180)
    first = port + 60
    environment = {
        **FAST,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + REPLICA_PORTS - 1),
        QUEUES_VARIABLE: f"127.0.0.1:{ports.metrics}",
        START_VARIABLE: str(start_s),
    }
    variant = servers.Variant("replay", "fleet", environment, local_head=True)
    with (
        tempfile.TemporaryDirectory(prefix="replay-") as folder,
        servers.ray(variant, ports, Path(folder)) as (tree, _),
    ):
        models = {name: _model(name) for name in POLICIES}
        servers.deploy(ports, [_application(model) for model in models.values()])
        with _gateway(list(models.values()), ports, (first, first + REPLICA_PORTS - 1), Path(folder)) as kill_gateway:
            wait_for(
                "the replicas",
                lambda: all(_states(ports, one.slug) == ["RUNNING"] for one in models.values()),
                tree,
                "",
            )
            wait_for("the gateway", lambda: _ready(ports), tree, "")
            kills: dict[str, Callable[[], None]] = {
                "gateway": kill_gateway,
                "replica": lambda: _kill_replicas(ports, [one.slug for one in models.values()]),
            }
            return asyncio.run(_play(trace, models, ports, [(one.at, kills[one.victim]) for one in faults]))


def _model(policy: str) -> ModelConfig:
    autoscaling = {"policy": policy, "min_replicas": 1, "max_replicas": MOST, "target_ongoing_requests": TARGET}
    return ModelConfig.model_validate(
        {
            "deployment_config": {
                "autoscaling_config": autoscaling,
                "max_ongoing_requests": PLACES,
                "ray_actor_options": {"num_cpus": 0},
            },
            "engine_config": {"model_id": f"replay/{policy}"},
            "scaling_config": {"num_workers": 1, "num_gpus_per_worker": 0, "num_cpus_per_worker": 0.1},
        }
    )


def _application(model: ModelConfig) -> dict[str, Any]:
    return {
        "name": model.slug,
        "route_prefix": f"/{model.slug}",
        "import_path": "tools.scaling.replica:build",
        "args": {"model": model.model_dump(mode="json")},
    }


@contextmanager
def _gateway(
    models: list[ModelConfig], ports: servers.Ports, replicas: tuple[int, int], folder: Path
) -> Iterator[Callable[[], None]]:
    """One queue for each model's replicas, without an end. Gives what kills it; it starts again at once."""
    queue = 1_000_000 // MOST
    routes = tuple(Route(one.model_id, one.slug, (one.model_id,), places=PLACES, queue=queue) for one in models)
    runtime = Runtime(
        bind=f"127.0.0.1:{ports.gateway}", folder=str(folder / "gateway"), run_folder=str(folder / "gateway" / "run"),
        key_map="", metrics_bind=f"127.0.0.1:{ports.metrics}", replica_ports=replicas,
    )  # fmt: skip
    settings = Settings(timeout_s=int(DRAINED_S))
    haproxy.write(
        render(GatewayPlan(routes, "none", settings), runtime, upstream=f"127.0.0.1:{ports.serve}"), runtime, None
    )
    binary, log = haproxy.find_binary(), folder / "gateway.log"
    processes = haproxy.start(runtime, binary, log)

    def kill() -> None:
        nonlocal processes
        for pid in (processes.gateway, processes.bodies):
            os.kill(pid, signal.SIGKILL)
        processes = haproxy.start(runtime, binary, log)

    try:
        yield kill
    finally:
        haproxy.stop(processes, timeout_s=1)


def _ready(ports: servers.Ports) -> bool:
    return servers.get(f"http://127.0.0.1:{ports.gateway}/ready") is not None


def _replicas(ports: servers.Ports, slug: str) -> list[dict[str, Any]]:
    """A model's, those included that start or end; none where Serve does not say."""
    deployments = servers.details(ports).get("applications", {}).get(slug, {}).get("deployments", {})
    return [replica for one in deployments.values() for replica in one["replicas"]]


def _states(ports: servers.Ports, slug: str) -> list[str] | None:
    """The state of each replica of a model; None where Serve does not say."""
    return [replica["state"] for replica in _replicas(ports, slug)] or None


def _kill_replicas(ports: servers.Ports, slugs: Sequence[str]) -> None:
    """The first of each model that runs; a model may have none at that moment."""
    for slug in slugs:
        running = [replica["pid"] for replica in _replicas(ports, slug) if replica["state"] == "RUNNING"]
        for pid in running[:1]:
            os.kill(pid, signal.SIGKILL)


def _seen(problem: Exception) -> str:
    """What the client of a request saw, in few words."""
    if isinstance(problem, aiohttp.ClientResponseError):
        return str(problem.status)
    if isinstance(problem, aiohttp.ClientPayloadError):
        return "cut streams"
    return "connections closed or refused"


class _Course:
    """What is seen of one policy."""

    def __init__(self, trace: Trace, model: ModelConfig) -> None:
        self.trace, self.model = trace, model
        self.ttft_s = [DRAINED_S] * len(trace.arrivals)
        self.points: list[Point] = []
        self.open, self.replica_s = 0, 0.0
        self.failed: list[Failure] = []
        self.states: list[str] = []

    async def ask(self, number: int, session: aiohttp.ClientSession, base: str, since: float) -> None:
        """One request of the trace, which began at `since` of the machine's clock."""
        body = {"model": self.model.model_id, "stream": True, "answer_s": self.trace.arrivals[number].answer_s}
        begun = time.monotonic()
        self.open += 1
        try:
            async with session.post(f"{base}/v1/completions", json=body) as answer:
                answer.raise_for_status()
                await answer.content.readline()
                self.ttft_s[number] = time.monotonic() - begun
                if b"[DONE]" not in await answer.content.read():
                    raise aiohttp.ClientPayloadError("the stream was cut")
        except (aiohttp.ClientError, TimeoutError) as problem:
            self.failed.append(Failure(time.monotonic() - since, _seen(problem)))
            print(f"{self.model.model_id}: {problem!r}", file=sys.stderr)
        finally:
            self.open -= 1

    def look(self, at: float, took_s: float, states: list[str] | None) -> None:
        """Replicas and requests at a second of the trace; a replica costs from its start to its end.

        A Serve that does not answer in time, on a machine that is too busy, counts as one where nothing changed.
        """
        self.states = states or self.states
        ready = self.states.count("RUNNING")
        self.replica_s += took_s * len(self.states)
        working = min(self.open, ready * PLACES)
        target = ready + self.states.count("STARTING")
        self.points.append(Point(at, ready, target, working, self.open - working))

    def outcome(self) -> Outcome:
        """Once all is answered."""
        return Outcome(self.trace, self.replica_s / 3600, tuple(self.ttft_s), tuple(self.points))


async def _play(
    trace: Trace,
    models: dict[str, ModelConfig],
    ports: servers.Ports,
    faults: Sequence[tuple[float, Callable[[], None]]],
) -> dict[str, tuple[Outcome, list[Failure]]]:
    courses = {name: _Course(trace, model) for name, model in models.items()}
    base = f"http://127.0.0.1:{ports.gateway}"
    begun = time.monotonic()
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=DRAINED_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(_watch(courses, ports, begun))
        for at, fault in faults:
            tasks.create_task(_later(begun + at, fault))
        asking = []
        for number, arrival in enumerate(trace.arrivals):
            await asyncio.sleep(max(0.0, begun + arrival.at - time.monotonic()))
            asking += [tasks.create_task(course.ask(number, session, base, begun)) for course in courses.values()]
        await asyncio.sleep(max(0.0, begun + trace.seconds - time.monotonic()))
        await asyncio.wait(asking)
        watching.cancel()
    return {name: (course.outcome(), course.failed) for name, course in courses.items()}


async def _later(at: float, fault: Callable[[], None]) -> None:
    await asyncio.sleep(at - time.monotonic())
    await asyncio.to_thread(fault)


async def _watch(courses: dict[str, _Course], ports: servers.Ports, begun: float) -> None:
    before = time.monotonic()
    while True:
        await asyncio.sleep(LOOK_S)
        states = {name: await asyncio.to_thread(_states, ports, one.model.slug) for name, one in courses.items()}
        now = time.monotonic()
        for name, course in courses.items():
            course.look(now - begun, now - before, states[name])
        before = now


if __name__ == "__main__":
    sys.exit(main())
