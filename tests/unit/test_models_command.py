"""`modelfleet models` and `models show`: what is printed for people and for machines, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelfleet.cli.models import Asked, run_show
from modelfleet.cli.models_list import run_models
from modelfleet.cli.models_speed import AskedLoad
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.catalog.speed import measurements
from modelfleet.infra.planning.facts import facts_from_config
from modelfleet.infra.planning.smallest import choices, smallest
from modelfleet.serving.config.errors import SetupError
from tools.probe.rows import FIXTURES, rows

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
    asked = ("model", "arch", "tp", "config", "weights_note")
    assert {key for key in truth if key not in asked} <= set(found["sources"]), "each number says where it is from"


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


def listed(capsys: pytest.CaptureFixture[str], words: str) -> dict[str, Any]:
    assert run_models(words, as_json=True) == 0
    return {row["hf_id"]: row for row in json.loads(capsys.readouterr().out)}


def test_each_model_has_its_cheapest_gpus_at_two_lengths_and_their_price(capsys: pytest.CaptureFixture[str]) -> None:
    """Llama 3.1 8B: 15 GiB of weights, 128 KiB a token, so 8,192 tokens are 1 GiB and 131,072 are 16."""
    found = listed(capsys, "llama-3.1-8b-instruct")["meta-llama/Llama-3.1-8B-Instruct"]["smallest"]
    short, long = ({key: one[key] for key in ("length", "accelerator", "gpus", "usd_per_hour")} for one in found)
    assert short == {"length": 8192, "accelerator": "L4", "gpus": 1, "usd_per_hour": 0.8048}
    assert long == {"length": 131072, "accelerator": "L40S", "gpus": 1, "usd_per_hour": 1.861}
    assert {one["price_region"] for one in found} == {"us-east-1"}


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-8B", "openai/gpt-oss-120b", "zai-org/GLM-5.2-FP8", "Qwen/Qwen3.5-397B-A17B-FP8"]
)
def test_the_listed_gpus_hold_the_model_and_cheaper_ones_do_not(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The list skips cards by their weights alone; `models show` counts each of them."""
    for one in listed(capsys, name.partition("/")[2].lower())[name]["smallest"]:
        asked = Asked(one["accelerator"], one["gpus"], one["length"], network=False)
        assert shown(capsys, name, asked)["refusals"] == []
        for choice in choices(default_catalog()):
            if choice.usd_per_hour < one["usd_per_hour"]:
                cheaper = Asked(choice.card.name, choice.workers, one["length"], network=False)
                assert shown(capsys, name, cheaper)["refusals"], f"{choice.workers} x {choice.card.name}"


def test_a_model_that_no_node_holds_and_one_of_unknown_shape_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    run_models("qwen3.8-2.4t")
    assert "?" in capsys.readouterr().out
    assert listed(capsys, "qwen3.8-2.4t")["Qwen/Qwen3.8-2.4T-A95B"]["smallest"] == []
    facts = facts_from_config(json.loads(json.dumps(CONFIGS["Qwen--Qwen3.5-9B"])), "test", default_catalog())
    small = [one for one in choices(default_catalog()) if one.card.name == "T4" and one.workers == 1]
    assert [one.accelerator for one in smallest(facts, default_catalog(), small)] == ["", ""]


def test_a_short_model_is_listed_at_its_own_length(capsys: pytest.CaptureFixture[str]) -> None:
    run_models("llama-2-7b-chat-hf")
    assert "L4 to 4,096" in capsys.readouterr().out


def test_a_search_without_a_match_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_models("unheard-of") == 0
    assert 'No model matches "unheard-of"' in capsys.readouterr().err


def test_speed_is_an_estimate_with_ranges_and_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    load = AskedLoad(input_tokens=1000, output_tokens=500, concurrency=10)
    found = shown(capsys, "Qwen/Qwen3-8B", Asked("L40S", network=False, load=load))
    for key in ("ttft_ms", "tpot_ms", "output_tokens_per_second"):
        assert 0 < found[key]["low"] < found[key]["expected"] < found[key]["high"], key
    assert found["basis"] == "estimate" and found["saturated"] is False
    assert found["load"] == {"input_tokens": 1000, "output_tokens": 500, "concurrency": 10, "engine": "vllm"}
    price, speed = found["usd_per_million_tokens"], found["output_tokens_per_second"]["expected"]
    assert price * speed == pytest.approx(1.861 / 3600 * 1e6, rel=0.01), "g6e.xlarge"


def test_a_load_that_was_measured_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    row = next(one for one in measurements() if one.id == "INFX-001")
    load = AskedLoad(round(row.input_tokens), round(row.output_tokens), round(row.requests or 1))
    found = shown(capsys, row.model, Asked(row.accelerator, row.gpus, network=False, load=load))
    assert found["basis"] == f"measured: {row.accelerator}, {row.date}"
    assert found["ttft_ms"]["low"] == found["ttft_ms"]["high"] == pytest.approx(row.ttft_ms)


def test_without_a_card_there_is_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, "Qwen/Qwen3-8B")
    assert found["ttft_ms"] is None and found["basis"] is None


def test_a_load_above_capacity_has_no_latency(capsys: pytest.CaptureFixture[str]) -> None:
    asked = Asked("L4", network=False, load=AskedLoad(4000, 500, 200))
    found = shown(capsys, "Qwen/Qwen3-8B", asked)
    assert found["saturated"] is True and found["ttft_ms"] is None and found["output_tokens_per_second"]
    run_show("Qwen/Qwen3-8B", asked)
    assert "above capacity" in capsys.readouterr().out


def test_the_screen_says_estimate_and_another_format_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_show("meta-llama/Llama-3.3-70B-Instruct", Asked("H100", network=False, quantization="awq")) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "estimate: 1 × (512 in, 256 out): first token" in text
    assert "counted as if there were a checkpoint of it in awq" in text
    half = shown(capsys, "Qwen/Qwen3-8B", Asked(quantization="fp8", network=False))
    assert half["weights_gib"] < 0.6 * shown(capsys, "Qwen/Qwen3-8B")["weights_gib"]
    assert not any("counted as if" in text for text in half["notices"]), "vLLM does this when it loads"


@pytest.mark.parametrize(
    ("asked", "option"),
    [({"quantization": "fp9"}, "--quantization"), ({"accelerator": "H101"}, "--accelerator")],
)
def test_an_unknown_option_is_answered_with_what_there_is(asked: dict[str, str], option: str) -> None:
    with pytest.raises(SetupError, match=f"{option}: found"):
        run_show("Qwen/Qwen3-8B", Asked(**asked, network=False))  # type: ignore[arg-type]
    with pytest.raises(SetupError, match="--engine: found 'tgi'"):
        AskedLoad(engine="tgi")


def test_a_card_that_runs_only_its_weights_in_8_bit_is_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """vLLM multiplies FP8 of compressed-tensors in 16 bit below 8.9 (`CompressedTensorsW8A16Fp8`), and INT8 natively."""
    assert shown(capsys, "nvidia/Llama-3.1-8B-Instruct-FP8", Asked("A100-80G", network=False))["refusals"] == []
    int8 = Asked("A100-80G", network=False, quantization="int8-w8a8")
    assert shown(capsys, "meta-llama/Llama-3.1-8B-Instruct", int8)["refusals"] == []


def test_a_refusal_is_in_the_json_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    asked = Asked("L4", network=False)
    assert run_show("meta-llama/Llama-3.3-70B-Instruct", asked, as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert [text.split(":")[0] for text in found["refusals"]] == ["does not fit"]
    assert found["basis"] == "none: not one request of 768 tokens has room in the KV cache"
    assert run_show("Qwen/Qwen3-8B", asked, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["refusals"] == []


def test_a_short_model_and_one_that_writes_nothing_are_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, "BAAI/bge-large-en-v1.5", Asked("L4", network=False))
    assert found["refusals"] == [] and found["max_model_len"] == 512
    assert found["basis"] == "none: the model writes no tokens"


def test_requests_beyond_max_model_len_have_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    asked = Asked("H100", length=1024, network=False, load=AskedLoad(1000, 500, 1))
    assert shown(capsys, "Qwen/Qwen3-8B", asked)["basis"].endswith("1,500 tokens is longer than max_model_len 1,024")
    run_show("Qwen/Qwen3-8B", asked)
    assert "no estimate of speed: a request of 1,500 tokens" in capsys.readouterr().out


def test_what_drafts_is_counted_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A head that the memory bar leaves out would make a model look as if it fits."""
    plain = shown(capsys, "Qwen/Qwen3.5-9B", Asked("L40S", network=False))
    drafted = shown(capsys, "Qwen/Qwen3.5-9B", Asked("L40S", network=False, draft="mtp"))
    assert (plain["draft_gib"], drafted["draft_gib"]) == (0.0, 0.453), "486,581,248 bytes, by vLLM's own class"
    assert drafted["layers_with_cache"] == plain["layers_with_cache"] + 1
    assert drafted["memory"]["weights_mib"] - plain["memory"]["weights_mib"] == pytest.approx(464.04, abs=0.01)
    assert "speed" in drafted["notices"][-1]


@pytest.mark.parametrize(
    ("draft", "why"),
    [("mtp", "names no multi-token layers"), ("eagle3=org/head", "the catalog does not know it"), ("dflash", "draft")],
)
def test_a_draft_that_cannot_be_counted_is_not_left_out(draft: str, why: str) -> None:
    with pytest.raises(SetupError, match=why):
        run_show("meta-llama/Llama-3.1-8B-Instruct", Asked(network=False, draft=draft))
