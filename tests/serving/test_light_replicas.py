"""Overload, more and fewer replicas, a killed one and a leaving one: the real Ray Serve and gateway, with an engine that costs nothing."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.serving.cluster import Cluster, start
from tests.serving.conftest import application, model
from tests.serving.front import Front, front
from tests.waiting import wait_until

PAIR, NARROW, ELASTIC, TIMED = "test/pair", "test/narrow", "test/elastic", "test/timed"
HALF, QUARTER = "test/half", "test/quarter"
QUARTERS, ASLEEP = "test/quarters", "test/asleep"
PATH = "/v1/completions"
#: A pretended card, which Ray knows by its UUID as on the local target.
CARD = "GPU-00000000-0000-4000-8000-00000000000c"
AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 2,
    "metrics_interval_s": 1,
    "look_back_period_s": 4,
    "upscale_delay_s": 2,
    "downscale_delay_s": 8,
}
TO_ZERO = {"min_replicas": 0, "max_replicas": 1, "downscale_to_zero_delay_s": 4}


def light(model_id: str, **deployment: Any) -> dict[str, Any]:
    data = model(model_id, deployment=deployment, scaling={"num_cpus_per_worker": 0.1})
    return application(data, module="light")


def part_of_a_card(model_id: str, part: float, notes: Path) -> dict[str, Any]:
    """A light replica that starts in its turn, as `LightReplica` tells it in `notes`."""
    made = application(
        model(model_id, scaling={"num_cpus_per_worker": 0.1, "num_gpus_per_worker": part}), module="light"
    )
    made["args"]["weights"]["source"] = str(notes)
    return made


def quarters() -> dict[str, Any]:
    """Five replicas of a model with a quarter of a GPU each."""
    scaling = {"num_cpus_per_worker": 0.1, "num_gpus_per_worker": 0.25}
    # Serve gives a replica that never had a place its whole time to shut down, too.
    deployment = {"num_replicas": 5, "graceful_shutdown_timeout_s": 1}
    return application(model(QUARTERS, deployment=deployment, scaling=scaling), module="light")


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, scratch: Path) -> Iterator[Front]:
    cluster.serve(
        light(PAIR, num_replicas=2, max_ongoing_requests=50, graceful_shutdown_timeout_s=60),
        light(NARROW, num_replicas=1, max_ongoing_requests=2),
        light(ELASTIC, autoscaling_config=AUTOSCALING, max_ongoing_requests=8, graceful_shutdown_timeout_s=20),
        light(ASLEEP, autoscaling_config=TO_ZERO, graceful_shutdown_timeout_s=5),
    )
    slugs = [name.replace("/", "--") for name in (PAIR, NARROW, ELASTIC, ASLEEP)]
    for slug in slugs:
        cluster.wait(slug)
    places: dict[str, dict[str, Any]] = {
        NARROW: {"places": 2, "queue": 4},
        ELASTIC: {"places": 8, "queue": 16},
        ASLEEP: {"scales_to_zero": True},
    }
    with front(cluster, scratch / "light", {PAIR: (), NARROW: (), ELASTIC: (), ASLEEP: ()}, places) as running:
        running.wait_ready()
        # Awake once, so that it comes down again while the other tests run.
        assert running.post(PATH, {"model": ASLEEP}, timeout=300).status_code == 200
        yield running
    cluster.remove(*slugs)


def test_beyond_its_queue_a_model_refuses_with_503_and_says_when_to_come_again(gateway: Front) -> None:
    """Two run and four may wait (twice as many). Serve's own default lets any number wait, each with its body."""
    body = {"model": NARROW, "max_tokens": 30, "pace_s": 0.1}
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: gateway.post(PATH, body), range(30)))
    codes = Counter(answer.status_code for answer in answers)
    assert set(codes) == {200, 503}, codes
    # On a busy machine threads start over some time, and a freed place is taken again.
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
        wait_until(lambda: all(self.seen), what="the start of every stream")

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
    wait_until(lambda: len(gateway.replicas(slug)) == 2, seconds=120, what="the gateway knows both replicas")
    streams = Streams(gateway, 8, {"model": PAIR, "max_tokens": 100, "pace_s": 0.1})
    pids = [streams.pid(index) for index in range(8)]
    assert len(set(pids)) == 2, f"the gateway spreads streams over both replicas: {gateway.replicas(slug)}"
    killed = pids[0]
    process = psutil.Process(killed)
    process.kill()
    process.wait(60)  # a request that reaches it while it dies counts as its own
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

    # Serve reports the dead one as running until its next check, and then starts another.
    wait_until(replaced, seconds=120, what="another replica")


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

    wait_until(replaced, seconds=120, what="two new replicas", every_s=0.2)
    streams.join()
    assert {seen[-1] for seen in streams.seen} == {"[DONE]"}
    assert set(codes) == {200}, f"no request is lost while replicas change: {codes}"


def test_a_schedule_adds_replicas_at_its_minute_and_those_that_run_stay(cluster: Cluster, gateway: Front) -> None:
    """Nobody tells Serve anything when the minute comes."""
    slug = TIMED.replace("/", "--")
    timed = light(TIMED, autoscaling_config={"min_replicas": 1, "max_replicas": 2}, max_ongoing_requests=8)
    # The next minute, but not before the first replica runs.
    begins = math.ceil((time.time() + 15) / 60) * 60
    change = datetime.fromtimestamp(begins, UTC)
    row = change.weekday() * 1440 + change.hour * 60 + change.minute
    rows = sorted([[(row - 60) % (7 * 1440), 1, 1], [row, 2, 2]])
    timed["args"]["schedule"] = {"fewest": 1, "most": 2, "own": {"zone": "UTC", "rows": rows}}
    cluster.serve(timed)

    def running() -> set[int]:
        return {one["pid"] for one in cluster.replicas(slug) if one["state"] == "RUNNING"}

    try:
        cluster.wait(slug)
        first = wait_until(running, what="the first replica", every_s=0.2) or set()
        seen = len(first), time.time()
        wait_until(lambda: len(running()) == 2, seconds=240, what="the second replica", every_s=0.5)
        assert seen[0] == 1 and seen[1] < begins, "before its minute there is one"
        assert time.time() >= begins and first < running(), "the first replica was not restarted"
    finally:
        cluster.remove(slug)


def test_replicas_come_with_load_and_go_without(cluster: Cluster, gateway: Front) -> None:
    stop = threading.Event()
    codes: list[int] = []

    def load() -> None:
        while not stop.is_set():
            codes.append(gateway.post(PATH, {"model": ELASTIC, "max_tokens": 50}).status_code)

    def count() -> int:
        running = cluster.replicas(ELASTIC.replace("/", "--"))
        return len([one for one in running if one["state"] == "RUNNING"])

    clients = [threading.Thread(target=load) for _ in range(6)]
    for client in clients:
        client.start()
    try:
        wait_until(lambda: count() == 2, seconds=400, what="a second replica")
    finally:
        stop.set()
        for client in clients:
            client.join(120)
    assert set(codes) == {200}
    wait_until(lambda: count() == 1, seconds=120, what="back to one replica")


def test_a_model_goes_to_zero_and_a_request_alone_wakes_it_and_is_answered(cluster: Cluster, gateway: Front) -> None:
    slug = ASLEEP.replace("/", "--")
    # After CALM_S without load; the other tests took longer.
    wait_until(lambda: not cluster.replicas(slug), seconds=240, what="no replica without load", every_s=0.5)
    for _ in range(4):
        assert gateway.get("/ready").status_code == 200
        assert ASLEEP in {one["id"] for one in gateway.get("/v1/models").json()["data"]}
        cluster.metrics()
        requests.get(f"{gateway.metrics_url}/metrics", timeout=30).raise_for_status()
        time.sleep(2)  # more is asked for after UPSCALE_S
        assert not cluster.replicas(slug), "nobody asked the model anything"
    answer = gateway.post(PATH, {"model": ASLEEP}, timeout=300)
    assert answer.status_code == 200 and answer.json()["pid"] == cluster.replicas(slug)[0]["pid"]


@pytest.fixture(scope="module")
def card(cluster: Cluster, scratch: Path, s3: dict[str, str]) -> Iterator[Cluster]:
    """A Ray with a card that only counts: it places replicas on it, and no model computes there.

    Not the other one: there what a replica holds of the machine is counted by its CPUs. Its code is in that one's bucket.
    """
    running = start(scratch / "card", {**s3, "CUDA_VISIBLE_DEVICES": CARD}, cpus=4, gpus=1)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.long(why="a second Ray")
def test_two_models_share_a_card_by_their_parts_and_start_one_after_the_other(card: Cluster, tmp_path: Path) -> None:
    """The card only counts: Ray places 0.5 and 0.25 on it by its UUID, and the turns on it are those of real replicas."""
    sharing = {name: part_of_a_card(name, part, tmp_path) for name, part in ((HALF, 0.5), (QUARTER, 0.25))}

    def noted(what: str) -> set[str]:
        return {one.stem for one in tmp_path.glob(f"*.{what}")}

    card.serve(*sharing.values())
    slugs = {one["name"] for one in sharing.values()}
    try:
        wait_until(lambda: noted("card") == slugs, seconds=240, what="both have their part")
        assert {one.read_text() for one in tmp_path.glob("*.card")} == {CARD}
        wait_until(lambda: noted("starts"), what="one starts")
        time.sleep(1)  # the other one would, too
        (first,) = noted("starts")
        (tmp_path / f"{first}.starts").unlink()
        (second,) = slugs - {first}
        wait_until(lambda: noted("starts") == {second}, what="the other one starts")
        card.wait(first)
        (tmp_path / f"{second}.starts").unlink()
        card.wait(second)
    finally:
        for left in tmp_path.glob("*.starts"):
            left.unlink()
        card.remove(*slugs)


@pytest.mark.long(why="a second Ray")
def test_four_quarters_share_a_gpu_and_a_fifth_waits(card: Cluster) -> None:
    """Ray's own count of a pretended card; that card's memory is the fit check's."""
    slug = QUARTERS.replace("/", "--")
    card.serve(quarters())
    try:

        def states() -> Counter[str]:
            return Counter(one["state"] for one in card.replicas(slug))

        wait_until(lambda: states()["RUNNING"] == 4, seconds=240, what="four replicas", every_s=0.5)
        for _ in range(10):  # room for a fifth would show in a second: the others took as long together
            seen = states()
            assert seen["RUNNING"] == 4 and seen.total() == 5, seen
            time.sleep(0.5)
    finally:
        card.remove(slug)
