"""Two models, three keys and 2,000 mixed requests with a gateway and a replica killed: tokens and money to the end.

`LONG=1 pytest -s tests/serving/test_usage_load.py` prints the table; `USAGE_REQUESTS` is another number of requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml

from modelfleet.cli.usage import run_usage
from modelfleet.infra.gateway import Runtime, render
from modelfleet.infra.local import haproxy
from modelfleet.infra.planning.plan import GatewayPlan, KeyPlan, Route
from modelfleet.infra.reading.usage import read_usage
from modelfleet.infra.stack.schema import Gateway as Settings
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.usage import CURRENT, UsageMeter
from tests.ports import free_port
from tests.serving.metered import EACH_S, POOL
from tests.serving.metering import metered_model, runtime_of, start_replica
from tests.serving.test_usage import CHAT, ONLY, START_S, counters_of
from tests.serving.tiny import make_adapter, make_thinking_model
from tests.unit.serving.test_usage import Answer
from tests.waiting import wait_until

REQUESTS = int(os.environ.get("USAGE_REQUESTS", "2000"))
FIRST, SECOND = "test/first", "test/second"
ADAPTERS = (f"{FIRST}-one", f"{FIRST}-two")
#: `limited` may use the first model alone.
KEYS = {name: f"sk-{name}-0123456789abcdef" for name in ("alice", "bob", "limited")}
#: A cent is a tenth of a node second.
USD_PER_NODE_HOUR = 360.0
OPEN_AT_A_TIME = 12
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
KINDS = ("plain", "stream", "aborted", "refused", "unknown", "tools", "adapter", "several", "thoughts", "pieces")

pytestmark = pytest.mark.long(why="two engines, and 2,000 requests take minutes")


@dataclass
class Replica:
    """One model's process, and what its counters said when somebody last looked."""

    config: ModelConfig
    weights: Path
    adapter: Path
    records: Path
    log: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] = field(init=False)
    #: Prompt and generation tokens of the processes that were killed.
    of_killed: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        self.process = start_replica(self.config, self.weights, self.adapter, self.records, self.port, self.log)

    @property
    def slug(self) -> str:
        return self.config.slug

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return requests.get(f"http://127.0.0.1:{self.port}/{self.slug}/health", timeout=20).ok

    def counters(self) -> tuple[float, float]:
        """vLLM's own, of all its processes."""
        now = counters_of(self.port, self.slug)
        return self.of_killed[0] + now[0], self.of_killed[1] + now[1]

    def kill(self) -> None:
        self.of_killed = self.counters()
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it, and then whatever of its engine is left."""
        if self.process.poll() is None:
            engine = psutil.Process(self.process.pid).children(recursive=True)
            self.process.send_signal(number)
            self.process.wait(60)
            _, left = psutil.wait_procs(engine, 0 if number == signal.SIGKILL else 20)
            for one in left:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            _, left = psutil.wait_procs(left, 20)
            assert not left

    def cpu_s(self) -> float:
        """Seconds of CPU that its process took until now, which does all accounting; its engine's own are others."""
        return float(sum(psutil.Process(self.process.pid).cpu_times()[:2]))


@dataclass
class Fleet:
    """The gateway before two replicas, and the folder of what they write down."""

    folder: Path
    replicas: dict[str, Replica]
    runtime: Runtime
    processes: haproxy.Processes

    @property
    def url(self) -> str:
        return f"http://{self.runtime.bind}"

    def records(self) -> list[dict[str, Any]]:
        return list(read_usage(self.folder / "usage"))

    def kill_gateway(self) -> None:
        for pid in (self.processes.gateway, self.processes.bodies):
            os.kill(pid, signal.SIGKILL)
        self.processes = haproxy.start(self.runtime, haproxy.find_binary(), self.folder / "gateway.log")


def replica_of(model_id: str, weights: Path, folder: Path, adapters: dict[str, Path], **engine: Any) -> Replica:
    tools = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    config = metered_model(model_id, weights, adapters, **tools, **engine)
    adapter = next(iter(adapters.values()), weights)
    return Replica(config, weights, adapter, folder / "usage" / config.slug, folder / f"{config.slug}.log")


@pytest.fixture(scope="module")
def fleet(scratch: Path, tiny: Path) -> Iterator[Fleet]:
    folder = scratch / "load"
    folder.mkdir()
    thinking, adapter = make_thinking_model(folder / "thinking", tiny), make_adapter(folder / "adapter")
    made = [
        replica_of(FIRST, thinking, folder, dict.fromkeys(ADAPTERS, adapter), reasoning_parser="deepseek_r1"),
        replica_of(SECOND, thinking, folder, {}, reasoning_parser="qwen3"),
    ]
    replicas = {one.config.model_id: one for one in made}
    routes = (
        Route(FIRST, made[0].slug, (FIRST, *ADAPTERS), answer_tokens=16),
        Route(SECOND, made[1].slug, (SECOND,), answer_tokens=16),
    )
    keys = (KeyPlan("alice", team=None), KeyPlan("bob"), KeyPlan("limited", models=(FIRST,)))
    runtime = runtime_of(folder)
    upstreams = {one.slug: f"127.0.0.1:{one.port}" for one in made}
    files = render(
        GatewayPlan(routes, "keys", Settings(), keys=keys), runtime, upstream="127.0.0.1:1", upstreams=upstreams
    )
    haproxy.write(files, runtime, KEYS)
    for one in made:
        one.start()
    running = Fleet(folder, replicas, runtime, haproxy.start(runtime, haproxy.find_binary(), folder / "gateway.log"))
    try:
        for one in made:
            wait_until(one.answers, what="vLLM answers", seconds=START_S, retry=requests.RequestException)
        yield running
    finally:
        haproxy.stop(running.processes, timeout_s=0.2)
        for one in made:
            one.end(signal.SIGKILL)


def body_of(kind: str, number: int, chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Path and body of a request, without its model."""
    body: dict[str, Any] = {"max_tokens": chance.randint(2, 24), "ignore_eos": True}
    chat = {"messages": [{"role": "user", "content": f"Say {number} " + "word " * chance.randint(0, 40)}]}
    prompt = {"prompt": f"Request {number} " + "word " * chance.randint(0, 40)}
    match kind:
        case "stream":
            return "/v1/completions", {**body, **prompt, "stream": True}
        case "aborted":
            return "/v1/completions", {**body, **prompt, "stream": True, "max_tokens": 300}
        case "refused":
            return "/v1/completions", {**body, **prompt, "max_tokens": -1}
        case "tools":
            return CHAT, {**body, **chat, "tools": [TOOL], "stream": chance.random() < 0.5}
        case "several":
            return "/v1/completions", {**body, **prompt, "n": 3, "temperature": 1.0}
        case "thoughts":
            thinking = {"chat_template_kwargs": {"thinking": chance.random() < 0.5}}
            return CHAT, {**body, **chat, **ONLY, **thinking, "stream": chance.random() < 0.5}
        case "pieces":
            return "/v1/completions", {**body, "prompt": ["one", "two three"], "stream": True,
                                       "stream_options": {"include_usage": True}}  # fmt: skip
    return "/v1/completions", {**body, **prompt}


def ask(fleet: Fleet, number: int, wait_for: Callable[[str], None]) -> str:
    """One request; returns its kind, and what came of it."""
    chance, kind = random.Random(number), KINDS[number % len(KINDS)]
    name = (FIRST, SECOND)[chance.random() < 0.4]
    if kind == "adapter":
        name = ADAPTERS[number // len(KINDS) % 2]
    wait_for(SECOND if name == SECOND else FIRST)
    key = ("alice", "bob", "limited")[number % 3]
    path, body = body_of(kind, number, chance)
    headers = {"authorization": f"Bearer {KEYS[key] if kind != 'unknown' else 'sk-nobody-0123456789'}"}
    try:
        answer = requests.post(
            fleet.url + path, json={**body, "model": name}, headers=headers, timeout=120, stream=True
        )
        lines = answer.iter_lines()
        if kind == "aborted":
            next(lines, None)
            answer.close()
        else:
            list(lines)
    except requests.RequestException:
        time.sleep(1)  # no gateway for a moment: the other requests are not for that moment
        return f"{kind}: cut by a kill"
    return f"{kind}: {answer.status_code}"


def the_load(fleet: Fleet) -> tuple[Counter[str], float]:
    """All requests; the gateway dies after a third of them, the second model's replica after a half."""
    numbers, outcomes, began = count(), Counter[str](), time.monotonic()
    second = fleet.replicas[SECOND]
    ready = threading.Event()
    ready.set()

    def wait_for(name: str) -> None:
        if name == SECOND:
            assert ready.wait(START_S)

    def worker() -> None:
        while (number := next(numbers)) < REQUESTS:
            if number == REQUESTS // 3:
                fleet.kill_gateway()
            if number == REQUESTS // 2:
                ready.clear()
                second.kill()
                second.start()
                threading.Thread(target=back, daemon=True).start()
            outcomes[ask(fleet, number, wait_for)] += 1

    def back() -> None:
        wait_until(second.answers, what="the second replica", seconds=START_S, retry=requests.RequestException)
        ready.set()

    with ThreadPoolExecutor(OPEN_AT_A_TIME) as pool:
        for done in [pool.submit(worker) for _ in range(OPEN_AT_A_TIME)]:
            done.result()
    assert ready.wait(START_S)
    return outcomes, time.monotonic() - began


def sums(records: list[dict[str, Any]]) -> tuple[float, float]:
    return sum(one["engine_prompt_tokens"] for one in records), sum(one["completion_tokens"] for one in records)


def node_seconds(folder: Path) -> float:
    """Of all nodes, read from their lines by this test itself."""
    spans: dict[str, tuple[str, str]] = {}
    for path in folder.rglob("-nodes/*/*/*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record["record"] == "node":
                spans[record["node"]] = (
                    record["began"],
                    max(record["written"], spans.get(record["node"], ("", ""))[1]),
                )
    return sum(_seconds(ended) - _seconds(began) for began, ended in spans.values())


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_tokens_and_money_to_the_end(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes, took = the_load(fleet)

    def quiet() -> bool:
        """All that is open belongs to the replica that was killed."""
        alive = {one["replica"] for one in fleet.records() if f"-{fleet.replicas[SECOND].process.pid}-" in one["replica"]
                 or one["model"] == FIRST}  # fmt: skip
        return not [one for one in fleet.records() if one["end"] == "open" and one["replica"] in alive]

    wait_until(quiet, what="all requests have ended")
    time.sleep(4 * EACH_S)  # the lines with thoughts
    records = fleet.records()
    counted, engines = {}, {}
    for name, replica in fleet.replicas.items():
        counted[name] = sums([one for one in records if one["model"] == name])
        engines[name] = replica.counters()
    for replica in fleet.replicas.values():
        replica.end()
    seconds = node_seconds(fleet.folder / "usage")

    (tmp_path / "stacks").mkdir()
    config = {"modelfleet:target": "local", "modelfleet:models": ["*"]}
    (tmp_path / "stacks" / "Pulumi.local.yaml").write_text(yaml.safe_dump({"config": config}))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run_usage("local", records=fleet.folder / "usage", prices=[f"{POOL}={USD_PER_NODE_HOUR}"], as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    usd = said["books"]["usd"]
    lines = round(100 * sum(line["usd"] for line in said["books"]["lines"]))
    by_key = {row["key"]: row for row in said["rows"]}

    ours, theirs = (sum(map(sum, side.values())) for side in (counted, engines))
    off = abs(ours - theirs) / theirs
    with capsys.disabled():
        print(f"\n{REQUESTS} requests in {took:.0f} s, {OPEN_AT_A_TIME} at a time")
        for outcome, number in sorted(outcomes.items()):
            print(f"  {outcome:28} {number:5}")
        for name, pair in counted.items():
            print(f"  {name}: prompt and completion tokens {pair}, vLLM's counters {engines[name]}")
        print(f"  tokens: {ours:.0f} of {theirs:.0f}, {100 * off:.4f} % off")
        print(f"  thoughts: {sum(one['reasoning_tokens'] for one in records)}")
        print(f"  money: {usd:.2f} USD, {seconds:.3f} node seconds at {USD_PER_NODE_HOUR} USD an hour are "
              f"{seconds * USD_PER_NODE_HOUR / 3600:.3f}; its lines {lines / 100:.2f}")  # fmt: skip
    # The first model's replica lived on: every token.
    assert counted[FIRST] == engines[FIRST]
    # Why not 0: the killed one takes what it answered between its last lines (10 s in a fleet, EACH_S here) and SIGKILL,
    # and our look at its counters came a moment before. A kill costs so much however many requests there are.
    assert off <= 0.001 * max(1, 2000 / REQUESTS)
    assert abs(usd - seconds * USD_PER_NODE_HOUR / 3600) <= 0.01
    assert lines == round(100 * usd)
    assert set(by_key) == set(KEYS) and all(row["completion_tokens"] and row["usd"] for row in by_key.values())
    assert not [one for one in records if one["key"] == "limited" and one["model"] == SECOND]
    assert {one["adapter"] for one in records} == {None, *ADAPTERS}
    statuses = Counter(outcome.rpartition(" ")[2] for outcome in outcomes.elements())
    assert statuses["200"] > 0.6 * REQUESTS and statuses["401"] and statuses["400"] and statuses["404"]


@pytest.fixture(scope="module")
def first(fleet: Fleet) -> Iterator[Replica]:
    """The first model's replica, alone on the machine."""
    for replica in fleet.replicas.values():
        replica.end()
    one = fleet.replicas[FIRST]
    one.start()
    wait_until(one.answers, what="vLLM answers", seconds=START_S, retry=requests.RequestException)
    yield one


async def meters_own_s(folder: Path) -> float:
    """Seconds a request that the meter takes around an application that does nothing."""
    answers = [Answer(9, ended=True)]

    async def app(*_: Any) -> None:
        if (usage := CURRENT.get()) is not None:
            usage.sequences += answers

    headers = [(b"x-modelfleet-key", b"alice"), (b"x-request-id", b"r")]
    scope = {"type": "http", "path": "/m/v1/completions", "headers": headers}

    async def seconds(served: Any) -> float:
        began = time.perf_counter()
        for _ in range(5000):
            await served(scope, None, None)
        return (time.perf_counter() - began) / 5000

    return await seconds(UsageMeter(app, folder)) - await seconds(app)


def test_accounting_costs_nothing_that_clients_feel(
    first: Replica, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same engine with the meter and without it, in turns."""
    urls = [f"http://127.0.0.1:{first.port}/{where}/v1/completions" for where in (first.slug, f"plain--{first.slug}")]
    local = threading.local()

    def one(url: str, tokens: int) -> float:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        began = time.perf_counter()
        body = {"model": FIRST, "prompt": "One two three", "max_tokens": tokens, "ignore_eos": True, "stream": True}
        with local.session.post(url, json=body, timeout=60, stream=True) as answer:
            lines = answer.iter_lines()
            next(lines)
            first_token = time.perf_counter() - began
            list(lines)
        return first_token

    def burst(url: str) -> tuple[float, float]:
        """Requests per second, and seconds of CPU a request."""
        spent, began = first.cpu_s(), time.perf_counter()
        list(pool.map(lambda _: one(url, 8), range(48)))
        took = time.perf_counter() - began
        return 48 / took, (first.cpu_s() - spent) / 48

    for url in urls * 5:
        one(url, 2)
    pairs = [
        [one(url, 1) for url in (urls if turn % 2 else urls[::-1])][:: 1 if turn % 2 else -1] for turn in range(300)
    ]
    later = [1000 * (metered - plain) for metered, plain in pairs]
    with ThreadPoolExecutor(8) as pool:
        burst(urls[0])
        turns = [
            [burst(url) for url in (urls if turn % 2 else urls[::-1])][:: 1 if turn % 2 else -1] for turn in range(36)
        ]
    # By the clock, and by CPU: a machine with other work makes a turn 10 to 30 % slower than its neighbour by the clock.
    ratios = [metered[0] / plain[0] for metered, plain in turns]
    by_cpu = [plain[1] / metered[1] for metered, plain in turns]
    error, cpu_error = (1.25 * statistics.stdev(one) / len(one) ** 0.5 for one in (ratios, by_cpu))  # of the median
    with capsys.disabled():
        print(f"\n  first token: {statistics.median(later):+.3f} ms with accounting, median of {len(later)} pairs")
        print(f"  throughput: {statistics.median(ratios):.3f} of that without, median of {len(ratios)} turns "
              f"(standard error {error:.3f}); by CPU a request {statistics.median(by_cpu):.3f} ({cpu_error:.3f})")  # fmt: skip
    assert statistics.median(later) <= 0.3
    assert statistics.median(ratios) + 2 * error >= 0.98
    assert statistics.median(by_cpu) + 2 * cpu_error >= 0.98
    # What the machine's noise hides: the meter's own time, beside all that this process takes for a request.
    alone = asyncio.run(meters_own_s(tmp_path))
    whole = statistics.median(plain[1] for _, plain in turns)
    with capsys.disabled():
        print(f"  the meter alone: {1e6 * alone:.0f} µs of {1000 * whole:.1f} ms CPU a request, its line in the file "
              f"included: throughput {whole / (whole + alone):.3f}")  # fmt: skip
    assert whole / (whole + alone) >= 0.98
