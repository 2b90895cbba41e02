"""The meter around the application, with sequences that stand in for the engine's, and the reader of its lines."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.reading.usage import read_usage
from modelfleet.serving import usage
from modelfleet.serving.usage import CURRENT, Counts, UsageMeter


@dataclass
class Answer:
    """A sequence of an engine, as far as it is."""

    completion: int = 0
    ended: bool = False
    aborted: bool = False
    prompt: int = 5
    group: str = "one"
    adapter: str | None = None
    thinks: bool = False
    reasoning: int = 0
    asked: int = 0

    def thoughts(self) -> int:
        self.asked += 1
        return self.reasoning

    @property
    def counts(self) -> Counts:
        return Counts("org/model", self.adapter, self.group, self.prompt, 2, self.completion)


def request(key: str | None = "alice", request_id: str = "r") -> dict[str, Any]:
    headers = [(b"x-request-id", request_id.encode()), *([(b"x-modelfleet-key", key.encode())] if key else [])]
    return {"type": "http", "path": "/m/v1/completions", "headers": headers}


def ask(meter: UsageMeter, **said: Any) -> None:
    asyncio.run(meter(request(**said), None, None))  # type: ignore[arg-type]


def meter_of(folder: Path, *answers: Answer, counted: list[Any] | None = None) -> UsageMeter:
    async def app(*_: Any) -> None:
        usage = CURRENT.get()
        assert usage is not None
        usage.sequences += answers

    return UsageMeter(app, folder, counted=(counted if counted is not None else []).append)


def test_a_request_has_one_record_with_the_keys_name(tmp_path: Path) -> None:
    counted: list[Any] = []
    ask(meter_of(tmp_path, Answer(7, ended=True, adapter="org/lora"), counted=counted))
    (record,) = read_usage(tmp_path)
    assert (record["key"], record["team"], record["model"], record["adapter"]) == (
        "alice",
        None,
        "org/model",
        "org/lora",
    )
    assert (record["prompt_tokens"], record["cached_tokens"], record["completion_tokens"]) == (5, 2, 7)
    assert record["end"] == "finished" and counted == [record]


def test_several_answers_to_one_prompt_pay_it_once(tmp_path: Path) -> None:
    answers = [Answer(3, ended=True), Answer(4, ended=True), Answer(1, ended=True, group="two")]
    ask(meter_of(tmp_path, *answers))
    (record,) = read_usage(tmp_path)
    assert (record["prompt_tokens"], record["engine_prompt_tokens"], record["completion_tokens"]) == (10, 15, 8)


def test_what_reaches_no_engine_has_no_record(tmp_path: Path) -> None:
    ask(meter_of(tmp_path))
    assert list(read_usage(tmp_path)) == []


def test_an_aborted_request_counts_until_the_engine_lets_go_of_it(tmp_path: Path) -> None:
    answer = Answer(3)
    meter = meter_of(tmp_path, answer)
    ask(meter)
    meter.note_open()
    assert [(one["end"], one["completion_tokens"]) for one in read_usage(tmp_path)] == [("open", 3)]
    answer.completion, answer.ended, answer.aborted = 4, True, True
    meter.note_open()
    meter.note_open()
    assert [(one["end"], one["completion_tokens"]) for one in read_usage(tmp_path)] == [("aborted", 4)]


def test_an_open_request_has_a_new_line_only_when_it_grew(tmp_path: Path) -> None:
    answer = Answer(3)
    meter = meter_of(tmp_path, answer)
    ask(meter)
    for grown in (3, 3, 8, 8):
        answer.completion = grown
        meter.note_open()
    (file,) = tmp_path.rglob("*.jsonl")
    assert len(file.read_text().splitlines()) == 2


def test_the_last_line_of_a_killed_replica_may_be_cut(tmp_path: Path) -> None:
    answer = Answer(3)
    meter = meter_of(tmp_path, answer)
    ask(meter)
    meter.note_open()
    (file,) = tmp_path.rglob("*.jsonl")
    whole = file.read_text()
    file.write_text(whole + whole.replace('"completion_tokens":3', '"completion_tokens":9')[:-40])
    assert [one["completion_tokens"] for one in read_usage(tmp_path)] == [3]


@pytest.mark.parametrize("name", ['a"b\n{}', "x" * 64, "é", "\\"])
def test_no_name_breaks_a_line(tmp_path: Path, name: str) -> None:
    """The gateway sends none of these; a replica that is asked without it still writes lines."""
    scope = request()
    scope["headers"] = [(b"x-modelfleet-key", name.encode("utf-8")), (b"x-request-id", name.encode("utf-8"))]
    meter = meter_of(tmp_path, Answer(1, ended=True))
    asyncio.run(meter(scope, None, None))  # type: ignore[arg-type]
    (record,) = read_usage(tmp_path)
    assert record["key"] == name.encode("utf-8").decode("latin-1")


def test_a_full_disk_ends_no_request_and_loses_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    ask(meter_of(tmp_path, Answer(7, ended=True)))
    assert "No space left on device" in caplog.text and '"completion_tokens":7' in caplog.text


def test_a_disk_that_takes_half_a_record_loses_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Really: the kernel writes what fits below the limit, and says so by the count alone."""
    meter = meter_of(tmp_path, Answer(7, ended=True))
    ask(meter, request_id="whole")
    (file,) = tmp_path.rglob("*.jsonl")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 40, hard))
    try:
        ask(meter, request_id="torn")
        ask(meter, request_id="refused")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    ask(meter, request_id="after")
    assert sorted(one["request_id"] for one in read_usage(tmp_path)) == ["after", "whole"]
    logged = [line for line in caplog.messages if '"completion_tokens":7' in line]
    assert ["torn" in line for line in logged] == [True, False] and "refused" in logged[1], "both are in the log"


def test_the_folder_keeps_a_month_and_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def left(days: float, name: str, size: int = 100) -> Path:
        at = time.time() - days * 86400
        path = tmp_path / f"date={name}" / "hour=00" / "old.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (at, at))
        return path

    ancient, old, young, live = left(36, "1"), left(34, "2"), left(2, "3"), left(0.05, "4", 1000)
    ask(meter_of(tmp_path, Answer(1, ended=True)))
    assert [one.exists() for one in (ancient, old, young, live)] == [False, True, True, True]
    assert not ancient.parent.parent.exists(), "no empty folders are left"
    monkeypatch.setattr(usage, "KEPT_BYTES", 1150)
    ask(meter_of(tmp_path, Answer(1, ended=True)))
    assert [one.exists() for one in (old, young, live)] == [False, False, True], "the last two hours stay"
    assert len(list(read_usage(tmp_path))) == 2


def test_a_round_that_fails_is_logged_and_the_next_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(usage, "PERIOD_S", 0.001)
    meter, rounds = meter_of(tmp_path), iter([RuntimeError("odd state")])
    second = asyncio.Event()

    def noted() -> None:
        for error in rounds:
            raise error
        second.set()

    monkeypatch.setattr(meter, "end_what_is_through", noted)

    async def both() -> None:
        running = asyncio.create_task(meter.run())
        try:
            await asyncio.wait_for(second.wait(), 20)
        finally:
            running.cancel()

    asyncio.run(both())
    assert caplog.text.count("odd state") == 1


def test_an_open_request_is_noted_each_ten_seconds_and_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "PERIOD_S", 0.001)
    answer = Answer(1)
    meter = meter_of(tmp_path, answer)
    ask(meter)

    def lines() -> list[str]:
        return [line for file in tmp_path.rglob("*.jsonl") for line in file.read_text().splitlines()]

    async def life() -> None:
        running = asyncio.create_task(meter.run())
        for _ in range(30):
            answer.completion += 1
            await asyncio.sleep(0.005)
        assert [json.loads(line)["end"] for line in lines()] == ["open"], "30 rounds, one line"
        answer.ended = True
        for _ in range(2000):
            if len(lines()) == 2:
                break
            await asyncio.sleep(0.005)
        running.cancel()

    asyncio.run(life())
    assert [json.loads(line)["end"] for line in lines()] == ["open", "finished"]


def test_records_before_the_time_asked_for_are_left_out(tmp_path: Path) -> None:
    ask(meter_of(tmp_path, Answer(1, ended=True)))
    now = datetime.now(UTC)
    assert len(list(read_usage(tmp_path, now - timedelta(hours=1)))) == 1
    assert list(read_usage(tmp_path, now + timedelta(seconds=5))) == []


def test_two_requests_at_once_have_their_own_sequences(tmp_path: Path) -> None:
    async def app(scope: Any, *_: Any) -> None:
        usage = CURRENT.get()
        await asyncio.sleep(0)
        assert usage is CURRENT.get() and usage is not None
        usage.sequences.append(Answer(len(scope["path"]), ended=True))

    async def both() -> None:
        meter = UsageMeter(app, tmp_path)
        await asyncio.gather(*(meter(request(key=key), None, None) for key in ("alice", "bob")))  # type: ignore[arg-type]

    asyncio.run(both())
    assert sorted(one["key"] for one in read_usage(tmp_path)) == ["alice", "bob"]


def thinking(tmp_path: Path) -> tuple[UsageMeter, Answer, list[Any]]:
    counted: list[Any] = []
    answer = Answer(9, ended=True, thinks=True, reasoning=4)
    meter = meter_of(tmp_path, answer, Answer(1, ended=True), counted=counted)
    ask(meter)
    (record,) = read_usage(tmp_path)
    assert (record["end"], record["completion_tokens"], record["reasoning_tokens"]) == ("finished", 10, 0)
    assert answer.asked == 0 and counted == [], "nobody waits for it"
    return meter, answer, counted


def test_thoughts_come_with_a_second_last_line_and_the_metrics_have_them_once(tmp_path: Path) -> None:
    meter, answer, counted = thinking(tmp_path)
    asyncio.run(meter.count_thoughts())
    (record,) = read_usage(tmp_path)
    assert (record["completion_tokens"], record["reasoning_tokens"]) == (10, 4)
    asyncio.run(meter.count_thoughts())
    assert counted == [record] and answer.asked == 1


def test_a_replica_that_ends_still_counts_the_thoughts_of_its_last_answers(tmp_path: Path) -> None:
    meter, _, counted = thinking(tmp_path)
    meter.last_words()
    (record,) = read_usage(tmp_path)
    assert record["reasoning_tokens"] == 4 and counted == [record]


def test_an_open_request_has_no_thoughts_yet(tmp_path: Path) -> None:
    answer = Answer(3, thinks=True, reasoning=2)
    meter = meter_of(tmp_path, answer)
    ask(meter)
    meter.note_open()
    asyncio.run(meter.count_thoughts())
    (record,) = read_usage(tmp_path)
    assert (record["end"], record["reasoning_tokens"], answer.asked) == ("open", 0, 0)


def test_a_replica_that_ends_notes_what_is_still_open(tmp_path: Path) -> None:
    meter = meter_of(tmp_path, Answer(3))
    ask(meter)
    meter.last_words()
    assert [(one["end"], one["completion_tokens"]) for one in read_usage(tmp_path)] == [("open", 3)]
