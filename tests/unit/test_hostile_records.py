"""Records that anybody may have written: one message for each, with file and line, and the rest still counts."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.cli.usage import MOST_UNREAD, run_usage
from modelfleet.infra.reading.node_hours import read_node_hours
from modelfleet.infra.reading.usage import read_usage
from modelfleet.serving.config.errors import Finding
from modelfleet.serving.usage import stamp

NOW = datetime.now(UTC)
BEGAN, ENDED = (stamp((NOW - timedelta(minutes=ago)).timestamp()) for ago in (20, 10))
REQUEST: dict[str, Any] = {
    "version": 1, "replica": "r", "number": 0, "began": BEGAN, "written": ENDED, "key": "alice", "team": None,
    "model": "org/m", "adapter": None, "end": "finished", "prompt_tokens": 3, "cached_tokens": 0,
    "completion_tokens": 4, "reasoning_tokens": 0,
}  # fmt: skip
HOLDING: dict[str, Any] = {
    "version": 1, "record": "holding", "replica": "r", "model": "org/m", "began": BEGAN, "ready": BEGAN,
    "written": ENDED, "node": "a", "boot": {}, "shares": {"a": 0.5},
}  # fmt: skip
NODE: dict[str, Any] = {
    "version": 1, "record": "node", "node": "a", "pool": "gpu", "began": BEGAN, "ended": None, "written": ENDED,
}  # fmt: skip
WORDS = ("NaN", "Infinity", "-1", "1e400", "9" * 400, "9" * 5000, "true", '"7"', "null", "[]", "{}", "7.5")


def write(folder: Path, *lines: str, nodes: bool = False) -> Path:
    path = folder / ("-nodes" if nodes else "org--m") / f"date={NOW:%Y-%m-%d}" / f"hour={NOW:%H}" / "r.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read(folder: Path) -> tuple[list[dict[str, Any]], Any, list[Finding]]:
    faults: list[Finding] = []
    began = NOW - timedelta(hours=2)
    return list(read_usage(folder, began, faults)), read_node_hours(folder, began, faults), faults


def with_value(record: dict[str, Any], key: str, text: str) -> str:
    return json.dumps({**record, key: "@"}).replace('"@"', text)


@pytest.mark.parametrize("word", WORDS)
def test_a_number_that_is_none_is_named_and_the_rest_counts(tmp_path: Path, word: str) -> None:
    path = write(tmp_path, json.dumps(REQUEST), with_value({**REQUEST, "number": 1}, "completion_tokens", word))
    found, _, faults = read(tmp_path)
    assert [one["number"] for one in found] == [0]
    (fault,) = faults
    unread = len(word) > 4300  # more digits than the reader takes from anybody
    assert (fault.file, fault.line, fault.path) == (str(path), 2, "" if unread else "completion_tokens")
    assert len(fault.sentence()) < 400 + len(str(path))


@pytest.mark.parametrize("record", [REQUEST, HOLDING, NODE], ids=["request", "holding", "node"])
def test_each_key_that_is_missing_or_of_another_kind_is_named(tmp_path: Path, record: dict[str, Any]) -> None:
    for key in record.keys() - {"version", "record", "end"} - ({"boot"} if record is HOLDING else set()):
        lacks = {name: value for name, value in record.items() if name != key}
        write(tmp_path, json.dumps(lacks), json.dumps({**record, key: [1]}), nodes="record" in record)
        _, _, faults = read(tmp_path)
        assert {(fault.line, fault.path.partition(".")[0]) for fault in faults} == {(1, key), (2, key)}, key
        assert "the key is missing" in min(faults, key=lambda fault: fault.line).message


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"written": "2026-99-99T00:00:00.000000Z"}, "written"),
        ({"began": "0001-01-01T00:00:00.000000Z"}, "began"),
        ({"key": "x" * 2000}, "key"),
        ({"version": 2}, "version"),
        ({"record": ["node"]}, "record"),
        ({"record": None}, "record"),
        ({"record": "request"}, "record"),
    ],
)
def test_times_names_and_kinds_of_no_record(tmp_path: Path, change: dict[str, Any], place: str) -> None:
    write(tmp_path, json.dumps({**REQUEST, **change}), json.dumps(REQUEST))
    found, _, (fault,) = read(tmp_path)
    assert (len(found), fault.line, fault.path) == (1, 1, place)


def test_a_key_that_anybody_wrote_moves_no_cursor(tmp_path: Path) -> None:
    write(tmp_path, json.dumps({**HOLDING, "shares": {"\x1b[2J" + "a" * 900: 7}}), nodes=True)
    (fault,) = set(read(tmp_path)[2])
    assert fault.path.startswith("shares.?[2Ja") and len(fault.path) < 80 and "\x1b" not in fault.sentence()


def test_shares_and_boots_are_numbers_and_times(tmp_path: Path) -> None:
    for change in ({"shares": {"a": 2}}, {"shares": {"a": "1"}}, {"boot": {"id": "k", "at": "yesterday"}}):
        write(tmp_path, json.dumps({**HOLDING, **change}), nodes=True)
        _, hours, faults = read(tmp_path)
        assert not hours.holdings and {fault.line for fault in faults} == {1}


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*REQUEST, *HOLDING]), inner),
        max_leaves=12,
    ),
    st.sampled_from([{}, REQUEST, HOLDING, NODE]),
)
def test_no_json_is_a_traceback(tmp_path_factory: pytest.TempPathFactory, value: Any, base: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("any")
    line = {**base, **value} if isinstance(value, dict) else value
    for nodes in (False, True):
        write(folder, json.dumps(line), "[" * 100_000, json.dumps(REQUEST), nodes=nodes)
    found, _, _ = read(folder)
    assert any(one["number"] == 0 for one in found)


def test_any_beginning_of_a_record_is_a_kill_and_no_fault(tmp_path: Path) -> None:
    line = json.dumps({**REQUEST, "key": 'a"b\n\u00e9'})
    write(tmp_path, *(line[:length] for length in range(len(line))), line)
    found, _, faults = read(tmp_path)
    assert len(found) == 1 and faults == []


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local stack; returns the folder of its records."""
    (tmp_path / "stacks").mkdir()
    config = {"modelfleet:target": "local", "modelfleet:models": ["*"]}
    (tmp_path / "stacks" / "Pulumi.local.yaml").write_text(yaml.safe_dump({"config": config}))
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".modelfleet" / "usage" / "local"


def test_the_command_shows_the_rest_and_says_which_lines_it_left_out(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [with_value(REQUEST, "prompt_tokens", word) for word in ("NaN", "-5", '"3"', "null", "[]", "{}", "true")]
    path = write(project, json.dumps(REQUEST), *lines)
    write(project, json.dumps(HOLDING), json.dumps({**NODE, "pool": "\x1b[2J"}), json.dumps(NODE), nodes=True)
    assert run_usage("local", prices=["gpu=3"]) == 1
    said = capsys.readouterr()
    assert "alice" in said.out and "0.25" in said.out, "half of a node for ten minutes at 3 USD an hour"
    told = [line for line in said.err.splitlines() if "this line is not counted" in line]
    assert len(told) == MOST_UNREAD and "and 3 lines more; --json has all of them" in said.err
    assert any(f"{path}:2: prompt_tokens: found nan; input should be" in line for line in told)
    assert "Traceback" not in said.err and "\x1b[2J" not in said.err + said.out
    assert run_usage("local", prices=["gpu=3"], as_json=True) == 1
    unread = json.loads(capsys.readouterr().out)["unread"]
    assert len(unread) == 8 and len({(one["file"], one["line"]) for one in unread}) == 8


def test_a_name_is_shown_and_not_obeyed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[red]x[/red]", "[/nothing]", "\x1b[31mred", "a\nb", "y" * 900]
    write(project, *(json.dumps({**REQUEST, "number": at, "key": name}) for at, name in enumerate(names)))
    assert run_usage("local") == 0
    said = capsys.readouterr().out
    assert "[red]x[/red]" in said and "[/nothing]" in said and "?[31mred" in said and "a?b" in said
    assert "\x1b" not in said and not re.search("y{100}", said)


def test_a_clock_that_jumps_back_costs_no_tokens(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(project, json.dumps({**REQUEST, "began": ENDED, "written": BEGAN}))
    assert run_usage("local", as_json=True) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["requests"], row["completion_tokens"]) == (1, 4)
