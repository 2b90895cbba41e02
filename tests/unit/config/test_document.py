"""Any bytes give a document with lines, or one finding. Otherwise: a traceback, a hang or full memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelfleet.serving.config.document import MAX_BYTES, parse_document, read_document
from modelfleet.serving.config.errors import InputErrors
from tests.unit.config.time_limit import within


def refused(raw: bytes | str) -> str:
    with pytest.raises(InputErrors) as caught:
        parse_document(raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass"), "f.yaml")
    assert len(caught.value.findings) == 1
    return caught.value.findings[0].sentence()


def test_every_key_has_its_line() -> None:
    document = parse_document(b"# comment\na:\n  b: 1\n  c:\n  - x\n  - y: 2\n", "f.yaml")
    assert document.data == {"a": {"b": 1, "c": ["x", {"y": 2}]}}
    assert [document.line(path) for path in [("a",), ("a", "b"), ("a", "c", 0), ("a", "c", 1, "y")]] == [2, 3, 5, 6]
    assert document.line(("a", "b", "none")) == 3, "an absent key has the line of its nearest parent"


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (LAUGHS, "expands to more than"),
        ("a: &a [*a]", "is nested deeper than"),
        ("a: &a {b: *a}", "is nested deeper than"),
        ("[" * 60 + "]" * 60, "f.yaml:1: [0][0][0][0]: is nested deeper than 50 levels"),
        ("[" * 5000, "is nested deeper than"),
        ("{a: " * 5000, "is nested deeper than"),
        ("- " * 5000, "is nested deeper than"),
        (b"\xff\xfea", "is not UTF-8"),
        (b"a: \x00", "is not YAML"),
        (b"a: \x1b[31m", "is not YAML"),
        ("a: [1", "is not YAML"),
        ("a: 1\n---\nb: 2", "is not YAML: but found another document"),
        ("\ta: 1", "is not YAML"),
        ("a: *nobody", "is not YAML: found undefined alias"),
        (
            "a: !!python/object/apply:os.system ['true']",
            "has the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ("a: !!python/name:os.system", "has a value that cannot be read"),
        ("!!python/object/new:os.system {a: 1}", "has the tag"),
        ("a: !mine {b: 1}", "has the tag '!mine'"),
        ("a: !!set {b}", "has the tag"),
        ("a: " + "9" * 5000, "has a value that cannot be read"),
        ("a: 0x" + "f" * 5000, "has a number beyond"),
        ("a: !!int abc", "has a value that cannot be read"),
        ("a: 2024-99-99", "has a value that cannot be read"),
        ('a: "\\ud800"', "half a character"),
        ('a: "\\0"', "NUL"),
        ('"\\0": a', "NUL"),
        ("? [a]\n: b", "keys are names"),
        ("<<: 3", "merges something that is not a mapping"),
        ("<<: [3]", "merges something that is not a mapping"),
    ],
)
def test_hostile_bytes_give_one_finding(raw: bytes | str, message: str) -> None:
    with within(2):
        assert message in refused(raw)


def test_merges_do_not_multiply() -> None:
    with within(2):
        assert parse_document(MERGES.encode(), "f.yaml").data["a11"] == {"x": 1}


def test_merge_keys_mean_what_they_mean_in_pyyaml() -> None:
    text = b"a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\nd: {w: 4, <<: *b}\n"
    data = parse_document(text, "f.yaml").data
    assert data["c"] == {"x": 1, "y": 1, "z": 3}
    assert data["d"] == {"y": 2, "z": 2, "w": 4}


def test_a_mapping_that_merges_itself_ends() -> None:
    assert parse_document(b"a: &a {<<: *a, b: 1}", "f.yaml").data == {"a": {"b": 1}}


def test_timestamps_stay_text_and_octal_is_a_number() -> None:
    assert parse_document(b"a: 2024-01-01\nb: 010\n", "f.yaml").data == {"a": "2024-01-01", "b": 8}


def test_a_byte_order_mark_is_not_part_of_the_first_key() -> None:
    assert parse_document("\N{BYTE ORDER MARK}a: 1".encode(), "f.yaml").data == {"a": 1}


def test_an_empty_file_has_no_data() -> None:
    assert parse_document(b"", "f.yaml").data is None


@pytest.mark.parametrize(
    "raw",
    [
        b"a: " + b"x" * (MAX_BYTES - 3),
        b"- x\n" * (MAX_BYTES // 4),
        b"&a x " * 1000,
        b"a" * 1000 + b": " * 1000,
        b"? " * 20_000,
        b"- - - " * 5_000,
        b'"' * MAX_BYTES,
        b"{" * MAX_BYTES,
        b"#" * MAX_BYTES,
        b"\n" * MAX_BYTES,
        b"a: |\n" + b" \n" * (MAX_BYTES // 3),
        b"a: 1\n" * (MAX_BYTES // 5),
    ],
    ids=range(12),
)
def test_the_largest_file_takes_seconds_at_most(raw: bytes) -> None:
    with within(5):
        try:
            parse_document(raw, "f.yaml")
        except InputErrors as error:
            assert error.findings


def test_a_file_that_is_too_large_is_not_read() -> None:
    assert "is larger than" in refused(b" " * (MAX_BYTES + 1))


def test_a_folder_a_missing_file_and_a_pipe_are_findings(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, message in [(tmp_path, "is not a file"), (tmp_path / "x", "cannot be read"), (pipe, "is not a file")]:
        with pytest.raises(InputErrors, match=message):
            read_document(path)


def test_a_message_cannot_forge_a_line_or_colour_a_terminal() -> None:
    """A hostile value in a pull request must not write into the log of the person who checks it."""
    document = parse_document(b'"a\\e[31m\\nb.yaml:1: fine\\u202e": 1', "f.yaml")
    (key,) = document.data
    sentence = document.finding((key,), f"found {key}").sentence()
    assert "\n" not in sentence and "\x1b" not in sentence and "\u202e" not in sentence
