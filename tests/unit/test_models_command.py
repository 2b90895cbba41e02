"""`modelfleet models` and `models show`: what is printed for people and for machines, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelfleet.cli.models import Asked, run_models, run_show
from modelfleet.serving.config.errors import SetupError
from tools.probe.__main__ import FIXTURES, rows

TRUTH = rows(FIXTURES / "kv-truth.jsonl")
CONFIGS = {row["config"]: row["content"] for row in rows(FIXTURES / "configs.jsonl")}
OFFLINE = Asked(network=False)


def shown(capsys: pytest.CaptureFixture[str], name: str, asked: Asked = OFFLINE) -> dict[str, Any]:
    run_show(name, asked, as_json=True)
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", ["Qwen--Qwen3.5-9B", "deepseek-ai--DeepSeek-V3.2", "openai--gpt-oss-120b"])
def test_a_config_json_prints_the_keys_that_vllm_answers(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIGS[model]))
    (truth,) = [row for row in TRUTH if row["model"] == model and "tp" not in row]
    found = shown(capsys, str(path))
    for key in ("growing_bytes_per_token", "state_bytes_per_sequence", "window_bytes_per_sequence", "request_bytes"):
        assert found[key] == truth[key], key
    assert found["kv_tokens"] == truth["kv_tokens"]
    assert found["weights_gib"] == pytest.approx(truth["weights_gib"], abs=0.002)
    assert found["sources"]["config"] == str(path)


def test_a_folder_is_read_with_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["Qwen--Qwen3.5-9B"]))
    assert shown(capsys, str(tmp_path))["block_size"] == 528


def test_gpus_divide_what_one_of_them_keeps(capsys: pytest.CaptureFixture[str]) -> None:
    one = shown(capsys, "meta-llama/Llama-3.3-70B-Instruct")
    four = shown(capsys, "meta-llama/Llama-3.3-70B-Instruct", Asked(gpus=4, network=False))
    assert four["growing_bytes_per_token"] == one["growing_bytes_per_token"] / 4
    assert "notices" in one and any("HF_TOKEN" in text for text in one["notices"]), "it is gated"


def test_a_card_that_cannot_run_it_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_show("openai/gpt-oss-20b", Asked("T4", network=False)) == 1
    assert "vLLM would not start: MXFP4 needs compute capability 8.0" in capsys.readouterr().out


def test_the_screen_has_a_bar_of_the_cards_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_show("Qwen/Qwen3-8B", Asked("L40S", network=False)) == 0
    text = capsys.readouterr().out
    assert "█ weights 15.3" in text and "of 44.4 GiB" in text


def test_an_unknown_model_says_what_to_give() -> None:
    with pytest.raises(SetupError, match="config.json"):
        run_show("org/unheard-of", OFFLINE)


def test_a_model_whose_shape_nobody_knows_is_not_guessed() -> None:
    with pytest.raises(SetupError, match="knows it but not its shape"):
        run_show("Qwen/Qwen3.8-2.4T-A95B", OFFLINE)


def test_the_catalog_is_searched_by_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_models("embedding qwen", as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert "Qwen/Qwen3-Embedding-0.6B" in [row["hf_id"] for row in found]
    assert all("embedding" in f"{row['hf_id']} {row['kind']}".lower() for row in found)


def test_a_search_without_a_match_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_models("unheard-of") == 0
    assert 'No model matches "unheard-of"' in capsys.readouterr().err
