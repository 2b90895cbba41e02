"""What a Ray pod writes to its output: each line of the logs once, whichever way the files change."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from modelfleet.infra.kubernetes.scripts.follow_logs import CHUNK_BYTES, Follower


def test_each_whole_line_comes_once_with_the_name_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "serve").mkdir()
    log, out = tmp_path / "serve" / "replica_a.log", tmp_path / "worker-1.out"
    follower = Follower(tmp_path)
    assert follower.lines() == []
    log.write_text("first\nhalf")
    out.write_text("ValueError: no memory\n")
    (tmp_path / "gcs_server.out").write_text("not ours\n")
    assert follower.lines() == ["replica_a.log: first", "worker-1.out: ValueError: no memory"]
    with log.open("a") as file:
        file.write(" a line\n\n")
    assert follower.lines() == ["replica_a.log: half a line"]
    assert follower.lines() == []


def test_a_file_that_is_replaced_or_gone_is_read_from_its_start(tmp_path: Path) -> None:
    log = tmp_path / "worker-1.err"
    follower = Follower(tmp_path)
    log.write_text("old and long\n")
    follower.lines()
    log.rename(tmp_path / "rotated")
    log.write_text("new, and longer than the old one\n")
    assert follower.lines() == ["worker-1.err: new, and longer than the old one"]
    log.unlink()
    assert follower.lines() == []


def test_a_line_without_an_end_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "worker-1.out").write_text("x" * (CHUNK_BYTES + 5) + "\nnext\n")
    follower = Follower(tmp_path)
    assert len(follower.lines()[0]) == len("worker-1.out: ") + CHUNK_BYTES
    assert follower.lines() == ["worker-1.out: xxxxx", "worker-1.out: next"]


def test_records_of_usage_are_lines_of_json_for_a_shipper_also_over_the_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after, later = 1_790_812_790.0, 1_790_812_805.0, 1_790_820_100.0  # 23:59:50, 00:00:05, 02:01:40
    first = tmp_path / "usage/org--m/date=2026-09-30/hour=23/r.jsonl"
    second = tmp_path / "usage/-nodes/date=2026-10-01/hour=00/r.jsonl"
    for path in (first, second):
        path.parent.mkdir(parents=True)
    follower = Follower(tmp_path)
    monkeypatch.setattr(time, "time", lambda: before)
    first.write_text('{"number":1}\n')
    assert [json.loads(line) for line in follower.lines()] == [{"number": 1}]
    with first.open("a") as file:
        file.write('{"number":2}\n')
    monkeypatch.setattr(time, "time", lambda: after)
    second.write_text('{"record":"node"}\n')
    assert follower.lines() == ['{"number":2}', '{"record":"node"}']
    monkeypatch.setattr(time, "time", lambda: later)
    second.write_text('{"record":"node"}\nnever\n')
    assert follower.lines() == [], "files of earlier hours do not grow"
