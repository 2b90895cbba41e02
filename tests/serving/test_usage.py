"""What a replica writes down of each request, against the real engine's own counters, behind the real gateway."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from modelfleet.infra.gateway import Runtime, render
from modelfleet.infra.local import haproxy
from modelfleet.infra.planning.plan import AllowancePlan, BudgetPlan, GatewayPlan, KeyPlan, Route
from modelfleet.infra.reading.usage import read_usage
from modelfleet.infra.stack.schema import Gateway as Settings
from tests.ports import free_port
from tests.serving.metered import EACH_S
from tests.serving.metering import metered_model, runtime_of, start_replica
from tests.serving.tiny import END, START, make_adapter, make_thinking_model
from tests.waiting import wait_until

ALICE, BOB, CAROL = "sk-alice-0123456789", "sk-bob-0123456789abc", "sk-carol-0123456789"
BUDGET = 100
MODEL, ADAPTER = "test/metered", "test/metered-adapter"
START_S = 400
#: Tokens of an answer that is cut off: some seconds.
LONG = 1900


@dataclass
class Metered:
    """The replica's process, the gateway before it, and the folder of its records."""

    url: str
    port: int
    folder: Path
    process: subprocess.Popen[bytes]
    runtime: Runtime

    def post(self, path: str = "/v1/completions", key: str = ALICE, **body: Any) -> requests.Response:
        headers = {"authorization": f"Bearer {key}", **body.pop("headers", {})}
        stream = bool(body.get("stream"))
        asked = (
            {"messages": [{"role": "user", "content": "One two"}]} if "chat" in path else {"prompt": "One two three"}
        )
        whole = {"model": MODEL, "ignore_eos": True, **asked, **body}
        return requests.post(self.url + path, json=whole, headers=headers, timeout=120, stream=stream)

    def records(self) -> list[dict[str, Any]]:
        return list(read_usage(self.folder))

    def last_line_at(self) -> float:
        """When the last line was written, in seconds since 1970."""
        return max(path.stat().st_mtime for path in self.folder.rglob("*.jsonl"))

    def kill_gateway(self) -> None:
        """SIGKILL, and another one in its place."""
        pids = self.folder.parent / "pids"
        for pid in json.loads(pids.read_text()).values():
            os.kill(pid, signal.SIGKILL)
        made = haproxy.start(self.runtime, haproxy.find_binary(), self.folder.parent / "gateway.log")
        pids.write_text(json.dumps(made.__dict__))

    def record_of(self, request_id: str) -> dict[str, Any]:
        """The last record of a request, once it is no longer open."""

        def ended() -> dict[str, Any] | None:
            found = [one for one in self.records() if one["request_id"] == request_id and one["end"] != "open"]
            return found[0] if found else None

        return wait_until(ended, what=f"{request_id} has a record")

    def counters(self) -> tuple[float, float]:
        """vLLM's own prompt and generation tokens."""
        return counters_of(self.port, MODEL.replace("/", "--"))


def counters_of(port: int, slug: str) -> tuple[float, float]:
    """vLLM's own prompt and generation tokens, at a replica's port."""
    text = requests.get(f"http://127.0.0.1:{port}/{slug}/metrics", timeout=20).text
    return tuple(  # type: ignore[return-value]
        sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(rf"vllm:{name}_total[{{ ]", line))
        for name in ("prompt_tokens", "generation_tokens")
    )


@pytest.fixture(scope="module")
def weights(tiny: Path, scratch: Path) -> tuple[Path, Path]:
    return make_thinking_model(scratch / "thinking", tiny), make_adapter(scratch / "metered-adapter")


def launched(folder: Path, weights: tuple[Path, Path]) -> Metered:
    folder.mkdir()
    tiny, adapter = weights
    config = metered_model(MODEL, tiny, {ADAPTER: adapter}, reasoning_parser="deepseek_r1")
    port, usage, log = free_port(), folder / "usage", folder / "log"
    process = start_replica(config, tiny, adapter, usage, port, log)
    slug = config.slug
    plan = GatewayPlan(
        (Route(MODEL, slug, (MODEL, ADAPTER), answer_tokens=16),), "keys", Settings(),
        keys=(KeyPlan("alice", team="web"), KeyPlan("bob"), KeyPlan("carol", budget=BudgetPlan(BUDGET, "tokens", "day"))), teams=(AllowancePlan("web"),),
    )  # fmt: skip
    runtime = runtime_of(folder)
    haproxy.write(
        render(plan, runtime, upstream=f"127.0.0.1:{port}"), runtime, {"alice": ALICE, "bob": BOB, "carol": CAROL}
    )
    made = haproxy.start(runtime, haproxy.find_binary(), folder / "gateway.log")
    (folder / "pids").write_text(json.dumps(made.__dict__))

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        return requests.get(f"http://127.0.0.1:{port}/{slug}/health", timeout=20).ok

    wait_until(answers, what="vLLM answers", seconds=START_S, retry=requests.RequestException)
    return Metered(f"http://{runtime.bind}", port, usage, process, runtime)


def end(metered: Metered) -> None:
    made = json.loads((metered.folder.parent / "pids").read_text())
    haproxy.stop(haproxy.Processes(**made), timeout_s=0.2)
    if metered.process.poll() is None:
        os.killpg(metered.process.pid, signal.SIGKILL)
    metered.process.wait(20)


@pytest.fixture(scope="module")
def metered(scratch: Path, weights: tuple[Path, Path]) -> Iterator[Metered]:
    running = launched(scratch / "metered", weights)
    yield running
    end(running)


def test_a_plain_answer_is_counted_as_its_usage_says(metered: Metered) -> None:
    answer = metered.post(max_tokens=7, headers={"x-request-id": "plain", "x-modelfleet-key": "mallory"})
    assert answer.status_code == 200, answer.text
    said, record = answer.json()["usage"], metered.record_of("plain")
    assert (record["prompt_tokens"], record["completion_tokens"]) == (said["prompt_tokens"], 7)
    assert (record["key"], record["team"], record["model"], record["adapter"]) == ("alice", "web", MODEL, None)
    assert record["end"] == "finished"


def test_a_stream_without_include_usage_is_counted_and_so_is_an_adapter(metered: Metered) -> None:
    answer = metered.post(model=ADAPTER, max_tokens=9, stream=True, key=BOB, headers={"x-request-id": "stream"})
    events = [line for line in answer.iter_lines() if line.startswith(b"data: {")]
    record = metered.record_of("stream")
    # A reader that is slower than the engine gets several tokens in one event.
    assert record["completion_tokens"] == 9 and events and b'"usage"' not in events[-1]
    assert (record["key"], record["team"], record["adapter"]) == ("bob", None, ADAPTER)


def test_several_answers_to_a_prompt_pay_the_prompt_once(metered: Metered) -> None:
    answer = metered.post(max_tokens=5, n=3, headers={"x-request-id": "three"})
    record = metered.record_of("three")
    assert record["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert (record["completion_tokens"], record["sequences"]) == (15, 3)
    assert record["engine_prompt_tokens"] == 3 * record["prompt_tokens"]


def test_several_prompts_are_each_paid(metered: Metered) -> None:
    answer = metered.post(prompt=["One", "two three"], max_tokens=3, headers={"x-request-id": "prompts"})
    record = metered.record_of("prompts")
    assert record["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert record["completion_tokens"] == 6


def test_a_budget_is_used_by_what_the_engine_counted_and_overdrawn_by_one_request_at_most(metered: Metered) -> None:
    """Streams without `usage` and an aborted one among them: the gateway hears of all within a round."""
    for number in range(20):
        answer = metered.post(max_tokens=12, stream=bool(number % 2), key=CAROL)
        if answer.status_code == 429:
            break
        if number == 3:
            next(answer.iter_lines())
            answer.close()
        _ = answer.content if number != 3 else b""
        time.sleep(3 * EACH_S)
    assert answer.status_code == 429 and answer.json()["error"]["code"] == "insufficient_quota"
    of_carol = [one for one in metered.records() if one["key"] == "carol"]
    most = max(one["prompt_tokens"] for one in of_carol) + 12
    used = sum(one["prompt_tokens"] + one["completion_tokens"] for one in of_carol)
    assert BUDGET <= used < BUDGET + most


def test_an_aborted_stream_is_counted_as_far_as_the_engine_went(metered: Metered) -> None:
    before = metered.counters()[1]
    answer = metered.post(max_tokens=LONG, stream=True, headers={"x-request-id": "aborted"})
    lines = answer.iter_lines()
    for _ in range(20):
        next(lines)
    answer.close()
    record = metered.record_of("aborted")
    assert record["end"] == "aborted" and 5 <= record["completion_tokens"] < LONG
    assert metered.counters()[1] - before == record["completion_tokens"]


def test_a_refused_request_has_no_record(metered: Metered) -> None:
    assert metered.post(max_tokens=-1, headers={"x-request-id": "refused"}).status_code == 400
    metered.post(max_tokens=1, headers={"x-request-id": "after"})
    metered.record_of("after")
    assert not [one for one in metered.records() if one["request_id"] == "refused"]


def test_many_mixed_requests_add_up_to_the_engines_own_counters(metered: Metered) -> None:
    def one(number: int) -> None:
        body: dict[str, Any] = {
            "max_tokens": 3 + number % 11, "key": (ALICE, BOB)[number % 2], "model": (MODEL, ADAPTER)[number % 3 == 0],
            "prompt": f"Request {number} " + "word " * (number % 40), "headers": {"x-request-id": f"mixed-{number}"},
        }  # fmt: skip
        if number % 4 == 0:
            body |= {"n": 2, "temperature": 1.0}
        if number % 2:
            answer = metered.post(**body, stream=True)
            if number % 5 == 0:
                next(answer.iter_lines())
                answer.close()
                return
            list(answer.iter_lines())
        else:
            assert metered.post(**body).status_code == 200

    prompt, completion = metered.counters()
    known = {one["request_id"] for one in metered.records()}
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(one, range(120)))

    def new() -> list[dict[str, Any]]:
        return [one for one in metered.records() if one["request_id"] not in known]

    wait_until(lambda: len(new()) >= 115 and all(one["end"] != "open" for one in new()), what="all have ended")

    def sums() -> tuple[float, float]:
        return sum(one["engine_prompt_tokens"] for one in new()), sum(one["completion_tokens"] for one in new())

    def engines() -> tuple[float, float]:
        counted_prompt, counted = metered.counters()
        return counted_prompt - prompt, counted - completion

    # An abort before the engine took the request has no record, so the number of records is not known.
    wait_until(lambda: sums() == engines(), what="records and counters are equal")
    assert sums() == engines()


CHAT = "/v1/chat/completions"
#: Two tokens beside those of thoughts, so that a random model thinks and stops thinking.
ONLY: dict[str, Any] = {"allowed_token_ids": [START, END, 100, 200], "temperature": 1.0, "return_token_ids": True}


def thoughts_in(tokens: list[int], *, opened: bool) -> int:
    """Of what was said, told apart by this test's own reading."""
    depth, found = int(opened), 0
    for token in tokens:
        if token in (START, END):
            depth = max(0, depth + (1 if token == START else -1))
        else:
            found += depth > 0
    return found


def with_thoughts(metered: Metered, request_id: str) -> dict[str, Any]:
    """Its record, once a second line could have come."""
    metered.record_of(request_id)
    time.sleep(3 * EACH_S)
    return metered.record_of(request_id)


@pytest.mark.parametrize("opened", [False, True], ids=["by-the-answer", "by-the-prompt"])
def test_thoughts_are_counted_whole_in_streams_and_in_aborted_ones(metered: Metered, opened: bool) -> None:
    asked: dict[str, Any] = {**ONLY, "chat_template_kwargs": {"thinking": opened}, "max_tokens": 60}
    said: dict[str, list[int]] = {}
    for seed in range(4):
        answer = metered.post(CHAT, **asked, seed=seed, headers={"x-request-id": f"plain-{opened}-{seed}"})
        assert answer.status_code == 200, answer.text
        said[f"plain-{opened}-{seed}"] = tokens = answer.json()["choices"][0]["token_ids"]
        details = answer.json()["usage"]["completion_tokens_details"]
        if not opened:  # vLLM sees no start that the prompt has
            assert details["reasoning_tokens"] == thoughts_in(tokens, opened=False)
    answer = metered.post(CHAT, **asked, stream=True, headers={"x-request-id": f"stream-{opened}"})
    events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith(b"data: {")]
    said[f"stream-{opened}"] = [
        token for event in events for choice in event["choices"] for token in choice.get("token_ids") or ()
    ]
    for request_id, tokens in said.items():
        record = with_thoughts(metered, request_id)
        assert record["completion_tokens"] == len(tokens) == 60
        assert record["reasoning_tokens"] == thoughts_in(tokens, opened=opened) > 0, request_id
    cut: dict[str, Any] = {**asked, "allowed_token_ids": [100, 200], "max_tokens": LONG}
    answer = metered.post(CHAT, **cut, stream=True, headers={"x-request-id": f"cut-{opened}"})
    next(answer.iter_lines())
    answer.close()
    record = with_thoughts(metered, f"cut-{opened}")
    assert record["end"] == "aborted"
    assert record["reasoning_tokens"] == (record["completion_tokens"] if opened else 0)


def test_a_completion_has_no_thoughts_as_vllm_says(metered: Metered) -> None:
    metered.post(**ONLY, max_tokens=30, headers={"x-request-id": "no-chat"})
    assert with_thoughts(metered, "no-chat")["reasoning_tokens"] == 0


def test_a_killed_gateway_loses_nothing_that_was_answered(metered: Metered) -> None:
    before = metered.counters()[1]
    answer = metered.post(max_tokens=LONG, stream=True, headers={"x-request-id": "gateway"})
    lines = answer.iter_lines()
    for _ in range(10):
        next(lines)
    metered.kill_gateway()
    record = metered.record_of("gateway")
    assert record["end"] == "aborted" and 5 <= record["completion_tokens"] < LONG
    assert metered.counters()[1] - before == record["completion_tokens"]
    wait_until(lambda: metered.post(max_tokens=1).ok, what="the next gateway", retry=requests.RequestException)


def test_a_killed_replica_loses_no_more_of_an_open_stream_than_since_its_last_line(
    scratch: Path, weights: tuple[Path, Path]
) -> None:
    running = launched(scratch / "killed", weights)
    try:
        done = running.post(max_tokens=4, headers={"x-request-id": "done"})
        assert done.status_code == 200
        noted: list[dict[str, Any]] = []
        answer = running.post(max_tokens=480, stream=True, headers={"x-request-id": "cut"}, prompt="One")
        times: list[float] = []
        lines = answer.iter_lines()  # held until the kill: one that nobody holds closes the stream, which is an abort
        for line in lines:
            if line.startswith(b"data: {"):
                times.append(time.time())
                noted = [one for one in running.records() if one["request_id"] == "cut"]
            if noted and time.time() - times[0] > 3 * EACH_S:
                break
        os.killpg(running.process.pid, signal.SIGKILL)
        records = {one["request_id"]: one for one in running.records()}
        assert records["done"]["completion_tokens"] == 4
        assert noted and noted[0]["end"] == "open", "the stream ended before it had a line"
        owed = sum(1 for at in times if at < running.last_line_at())  # a busy machine writes it late
        assert owed > 0
        assert records["cut"]["end"] == "open" and records["cut"]["completion_tokens"] >= owed
    finally:
        end(running)
