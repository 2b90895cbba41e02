"""Overload, a killed replica and a leaving one: Ray Serve and the gateway as they run, with an engine that costs nothing."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serving.cluster import Cluster
from tests.serving.conftest import application, model
from tests.serving.front import Front, front

PAIR, NARROW = "test/pair", "test/narrow"
IMPORT_PATH = "tests.serving.light:build"
PATH = "/v1/completions"


def light(model_id: str, **deployment: Any) -> dict[str, Any]:
    data = model(model_id, deployment=deployment, scaling={"num_cpus_per_worker": 0.1})
    return application(data) | {"import_path": IMPORT_PATH}


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, scratch: Path) -> Iterator[Front]:
    cluster.serve(
        light(PAIR, num_replicas=2, max_ongoing_requests=50, graceful_shutdown_timeout_s=60),
        light(NARROW, num_replicas=1, max_ongoing_requests=2),
    )
    slugs = [name.replace("/", "--") for name in (PAIR, NARROW)]
    for slug in slugs:
        cluster.wait(slug)
    with front(cluster, scratch / "light", {PAIR: (), NARROW: ()}) as running:
        running.wait_ready()
        yield running
    cluster.remove(*slugs)


def until(condition: Callable[[], bool], within_s: float = 120) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


def test_beyond_its_queue_a_model_refuses_with_503_and_says_when_to_come_again(gateway: Front) -> None:
    """Two at work, four may wait (twice as many); Serve's own default lets any number wait, each with its body."""
    body = {"model": NARROW, "max_tokens": 30, "pace_s": 0.1}
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: gateway.post(PATH, body), range(30)))
    codes = Counter(answer.status_code for answer in answers)
    assert set(codes) == {200, 503}, codes
    # Threads start over some time on a busy machine, and a place that was freed is taken again.
    assert 4 <= codes[200] <= 18, codes
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert int(refused.headers["retry-after"]) > 0 and refused.headers["x-request-id"]
    assert refused.json()["error"]["code"] == 503 and "overloaded" in refused.json()["error"]["message"]
    assert gateway.post(PATH, {"model": NARROW}).status_code == 200, "it takes requests again at once"


class Streams:
    """Streams that run at the same time; each ends with the events that it got."""

    def __init__(self, gateway: Front, count: int, body: dict[str, Any]) -> None:
        self.seen: list[list[str]] = [[] for _ in range(count)]
        self.threads = [threading.Thread(target=self._read, args=(gateway, body, seen)) for seen in self.seen]
        for thread in self.threads:
            thread.start()
        assert until(lambda: all(self.seen)), "a stream did not begin"

    def _read(self, gateway: Front, body: dict[str, Any], seen: list[str]) -> None:
        try:
            with gateway.post(PATH, {**body, "stream": True}, stream=True) as answer:
                for line in answer.iter_lines(decode_unicode=True):
                    if line.startswith("data: "):
                        seen.append(line.removeprefix("data: "))
        except OSError:
            seen.append("cut")

    def join(self) -> None:
        for thread in self.threads:
            thread.join(120)

    def pid(self, index: int) -> int:
        pid: int = json.loads(self.seen[index][0])["pid"]
        return pid


def test_a_killed_replica_loses_its_own_open_requests_and_no_other(cluster: Cluster, gateway: Front) -> None:
    slug = PAIR.replace("/", "--")
    assert until(lambda: len(gateway.replicas(slug)) == 2), f"{gateway.replicas(slug)} of {cluster.replicas(slug)}"
    streams = Streams(gateway, 8, {"model": PAIR, "max_tokens": 100, "pace_s": 0.1})
    pids = [streams.pid(index) for index in range(8)]
    assert len(set(pids)) == 2, f"the gateway spreads streams over both replicas: {gateway.replicas(slug)}"
    killed = pids[0]
    process = psutil.Process(killed)
    process.kill()
    process.wait(60)  # what reaches it while it dies is one of its own
    codes = Counter(gateway.post(PATH, {"model": PAIR}).status_code for _ in range(100))
    assert codes == {200: 100}, "a new request finds the other replica"
    streams.join()
    for index, pid in enumerate(pids):
        ended = streams.seen[index][-1]
        assert ended == ("cut" if pid == killed else "[DONE]"), (
            f"{ended} of {'the killed' if pid == killed else 'the other'}"
        )

    def replaced() -> bool:
        running = {one["pid"] for one in cluster.replicas(slug) if one["state"] == "RUNNING"}
        return len(running) == 2 and killed not in running

    assert until(replaced), "Serve tells the dead one as running until it has looked, and then starts another"


def test_replicas_that_are_replaced_finish_their_streams(cluster: Cluster, gateway: Front) -> None:
    streams = Streams(gateway, 8, {"model": PAIR, "max_tokens": 150, "pace_s": 0.1})
    before = {streams.pid(index) for index in range(8)}
    slug = PAIR.replace("/", "--")
    codes: Counter[int] = Counter()
    changed = light(PAIR, num_replicas=2, max_ongoing_requests=51, graceful_shutdown_timeout_s=60)
    # Another argument of the application: Serve replaces every replica.
    changed["args"]["weights"]["revision"] = "other"
    cluster.serve(changed)

    def replaced() -> bool:
        codes[gateway.post(PATH, {"model": PAIR}).status_code] += 1
        running = {one["pid"] for one in cluster.replicas(slug) if one["state"] == "RUNNING"}
        return len(running) == 2 and not running & before

    assert until(replaced)
    streams.join()
    assert {seen[-1] for seen in streams.seen} == {"[DONE]"}
    assert set(codes) == {200}, f"no request is lost while replicas change: {codes}"
