"""`modelfleet check` and a model's recipe, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.unit.config.test_check_command import run

MODEL = """\
# ours
engine_config:
  model_id: Qwen/Qwen3-8B   # small
  engine_kwargs:
    # agents use it
    enable_auto_tool_choice: true
scaling_config:
  num_workers: 1
  placement_strategy: STRICT_PACK
  resources_per_worker: {"accelerator_type:L4": 0.001}
"""
ADDED = """\
    enable_auto_tool_choice: true
    tool_call_parser: hermes
    reasoning_parser: qwen3
"""


def test_a_file_that_lacks_a_parser_is_told_the_line(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MODEL)
    done = run("m.yaml", cwd=tmp_path)
    assert done.returncode == 1, "the engine would not start without the parser"
    assert (
        "m.yaml:4: notice: engine_config.engine_kwargs.tool_call_parser: tools are asked of Qwen3 but no "
        "tool_call_parser is set; add `tool_call_parser: hermes` (vllm-project/recipes@"
    ) in done.stdout
    assert (tmp_path / "m.yaml").read_text() == MODEL


def test_fix_alone_adds_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MODEL)
    run("--fix", "m.yaml", cwd=tmp_path)
    assert (tmp_path / "m.yaml").read_text() == MODEL


def test_fix_with_recipes_adds_the_lines_and_keeps_the_rest(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MODEL)
    first = run("--fix", "--recipes", "--json", "m.yaml", cwd=tmp_path)
    assert (tmp_path / "m.yaml").read_text() == MODEL.replace("    enable_auto_tool_choice: true\n", ADDED)
    answer = json.loads(first.stdout)
    assert first.returncode == 0 and answer["rewritten"] == ["m.yaml"]
    assert [f["message"] for f in answer["findings"] if f["message"].startswith("added")] == [
        "added: `reasoning_parser: qwen3`",
        "added: `tool_call_parser: hermes`",
    ]
    second = run("--fix", "--recipes", "m.yaml", cwd=tmp_path)
    assert second.returncode == 0 and "added" not in second.stdout and "rewritten" not in second.stderr


def test_other_weights_are_offered_and_never_written(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MODEL.replace("    enable_auto_tool_choice: true\n", ADDED))
    done = run("--fix", "--recipes", "m.yaml", cwd=tmp_path)
    assert "add `hf_model_id: Qwen/Qwen3-8B-FP8`, or `hf_model_id: Qwen/Qwen3-8B` to keep this one" in done.stdout
    assert "hf_model_id" not in (tmp_path / "m.yaml").read_text() and "--recipes" not in done.stderr


def test_old_names_go_and_lines_come_in_one_run(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(f"deployment_config:\n  max_concurrent_queries: 8\n{MODEL}")
    assert run("--fix", "--recipes", "m.yaml", cwd=tmp_path).returncode == 0
    text = (tmp_path / "m.yaml").read_text()
    assert "max_ongoing_requests: 8" in text and ADDED in text


def test_a_fine_tune_in_a_folder_has_the_recipe_of_its_config(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    (weights / "config.json").write_text(json.dumps({"model_type": "qwen3", "head_dim": 32, **shape}))
    header = json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (weights / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    data = yaml.safe_load(MODEL)
    data["engine_config"] |= {"model_id": "ours/chat", "hf_model_id": str(weights)}
    data["engine_config"]["engine_kwargs"] = {"max_num_seqs": 4}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(data))
    done = run("m.yaml", cwd=tmp_path)
    assert "`tool_call_parser: hermes`" in done.stdout and "chosen by model_type alone)" in done.stdout, done.stdout


def test_the_next_step_names_the_option_only_where_it_helps(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MODEL.replace("enable_auto_tool_choice: true", "max_num_seqs: 8"))
    assert "Next: modelfleet check --fix --recipes, which adds what recipes have" in run("m.yaml", cwd=tmp_path).stderr


def test_recipes_without_fix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MODEL)
    done = run("--recipes", "m.yaml", cwd=tmp_path)
    assert done.returncode == 1 and "goes with --fix" in done.stderr


@pytest.mark.parametrize(
    "text", ["", "[]", "engine_config: 3\n", "a: [\n"], ids=["empty", "a list", "a number", "no YAML"]
)
def test_a_file_that_is_no_model_is_one_fault(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(text)
    done = run("--fix", "--recipes", "m.yaml", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (tmp_path / "m.yaml").read_text() == text
