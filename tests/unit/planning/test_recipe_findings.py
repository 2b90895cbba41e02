"""What a file lacks of its recipe is a notice with the line to add; what cannot work is refused before a node is bought."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
import yaml

from modelfleet.infra.catalog.recipes import Checkpoints, KnownBad, Recipe, Setting, When, recipe_of
from modelfleet.infra.planning.recipe_findings import case_of, known_bad_findings, missing_lines, recipe_findings
from modelfleet.serving.config.document import Document, parse_document
from modelfleet.serving.config.errors import InputErrors
from tests.unit.planning.builders import model, planned, pool, stack

BASIS = "a card, 2026-08-21"


def document(accelerator: str = "A100-80G", *, workers: int = 1, **engine: Any) -> Document:
    data = {
        "engine_config": {"model_id": "org/m", **engine},
        "scaling_config": {"num_workers": workers, "resources_per_worker": {f"accelerator_type:{accelerator}": 0.001}},
    }
    return parse_document(yaml.safe_dump(data, sort_keys=False).encode(), "m.yaml")


def recipe(
    *settings: Setting, known_bad: list[KnownBad] | None = None, checkpoints: list[Checkpoints] | None = None
) -> Recipe:
    return Recipe(
        family="F",
        ids=["org/*"],
        source="a card",
        date=datetime.date(2026, 8, 21),
        settings=list(settings),
        known_bad=known_bad or [],
        checkpoints=checkpoints or [],
    )


def sentences(asked: Document, known: Recipe) -> list[str]:
    return [finding.sentence() for finding in recipe_findings(asked, known)]


TOOLS = Setting(purpose="tools", engine_kwargs={"enable_auto_tool_choice": True, "tool_call_parser": "hermes"})
THINKS = Setting(purpose="reasoning", engine_kwargs={"reasoning_parser": "qwen3"})


@pytest.mark.parametrize(
    ("kwargs", "notice"),
    [
        (
            {"enable_auto_tool_choice": True},
            "m.yaml:3: notice: engine_config.engine_kwargs.tool_call_parser: tools are asked of F but no "
            f"tool_call_parser is set; add `tool_call_parser: hermes` ({BASIS})",
        ),
        (
            {"tool_call_parser": "hermes"},
            "m.yaml:3: notice: engine_config.engine_kwargs.enable_auto_tool_choice: a tool_call_parser is set but "
            f"tools are not on; add `enable_auto_tool_choice: true` ({BASIS})",
        ),
        (
            {"max_num_seqs": 4},
            "m.yaml:3: notice: engine_config.engine_kwargs.enable_auto_tool_choice: F can call tools, but vLLM refuses "
            "requests that leave the choice to it; add `enable_auto_tool_choice: true` and `tool_call_parser: hermes`, "
            f"or `enable_auto_tool_choice: false` to keep it so ({BASIS})",
        ),
        (
            {"enable_auto_tool_choice": True, "tool_call_parser": "mistral"},
            "m.yaml:5: notice: engine_config.engine_kwargs.tool_call_parser: found 'mistral'; the recipe of F has "
            f"'hermes' ({BASIS})",
        ),
        ({"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}, None),
        ({"enable_auto_tool_choice": True, "tool_call_parser": "qwen3_json"}, None),
        ({"enable_auto_tool_choice": False}, None),
    ],
    ids=["asked", "not on", "not asked", "another format", "whole", "another name of it", "refused"],
)
def test_what_a_file_says_of_tools_decides_what_it_is_told(kwargs: dict[str, Any], notice: str | None) -> None:
    assert sentences(document(engine_kwargs=kwargs), recipe(TOOLS)) == ([] if notice is None else [notice])


@pytest.mark.parametrize(
    "engine",
    [
        {"engine_kwargs": {"reasoning_parser": "qwen3"}},
        {"engine_kwargs": {"reasoning_parser": ""}},
        {"engine_kwargs": {"structured_outputs_config": {"reasoning_parser": "qwen3"}}},
    ],
    ids=["set", "refused", "nested"],
)
def test_a_reasoning_parser_that_is_decided_is_no_finding(engine: dict[str, Any]) -> None:
    assert sentences(document(max_total_tokens=8192, **engine), recipe(THINKS)) == []
    (notice,) = sentences(document(max_total_tokens=8192), recipe(THINKS))
    assert (
        "F thinks before it answers, and no reasoning_parser takes the thoughts out; add `reasoning_parser: " in notice
    )


def test_a_model_that_thinks_is_not_left_with_rayllms_length_unsaid() -> None:
    rayllm = {"prompt_format": {"user": "{instruction}"}}
    decided: dict[str, Any] = {"engine_kwargs": {"reasoning_parser": "qwen3"}, "generation": rayllm}
    (notice,) = sentences(document(**decided), recipe(THINKS))
    assert notice.startswith(
        "m.yaml:1: notice: engine_config.max_total_tokens: is left out, so a request has 2048 tokens"
    )
    assert sentences(document(), recipe(TOOLS))[0].count("2048") == 0
    assert sentences(document(engine_kwargs={"reasoning_parser": "qwen3"}), recipe(THINKS)) == []
    given = Setting(purpose="correct", why="w", max_total_tokens=4096)
    assert [one.count("2048") for one in sentences(document(**decided), recipe(THINKS, given))] == [0]


def test_a_prompt_format_of_its_own_has_no_place_for_tools() -> None:
    generation = {"prompt_format": {"user": "{instruction}"}}
    assert sentences(document(generation=generation), recipe(TOOLS)) == []


def test_a_later_setting_replaces_an_earlier_one_for_the_same_key() -> None:
    first = Setting(purpose="correct", why="w", engine_kwargs={"max_num_seqs": 256, "block_size": 16})
    second = Setting(purpose="fast", why="v", when=When(ids=["org/M"]), engine_kwargs={"max_num_seqs": 8})
    assert {path[-1]: value for path, value in missing_lines(recipe(first, second), document()).items()} == {
        "max_num_seqs": 8,
        "block_size": 16,
    }


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ({"ids": ["*/m"]}, True),
        ({"ids": ["*/n"]}, False),
        ({"not_ids": ["org/M"]}, False),
        ({"from_capability": "8.0"}, True),
        ({"from_capability": "8.9"}, False),
        ({"below_capability": "8.9"}, True),
        ({"below_capability": "8.0"}, False),
        ({"below_gpu_memory_gib": 100}, True),
        ({"below_gpu_memory_gib": 80}, False),
        ({"workers": [2, 4]}, True),
        ({"workers": [8]}, False),
        ({"above_length": 8191}, True),
        ({"above_length": 8192}, False),
        ({"engine_kwargs": {"dtype": ["half", "float16"]}}, True),
        ({"engine_kwargs": {"dtype": ["bfloat16"]}}, False),
        ({"engine_kwargs": {"quantization": [None]}}, True),
        ({"engine_kwargs": {"dtype": [None]}}, False),
    ],
    ids=str,
)
def test_every_condition_of_a_setting_is_asked(when: dict[str, Any], holds: bool) -> None:
    setting = Setting(purpose="fast", why="w", when=When(**when), engine_kwargs={"max_num_seqs": 8})
    asked = document(workers=4, max_total_tokens=8192, engine_kwargs={"dtype": "half"})
    assert bool(missing_lines(recipe(setting), asked)) == holds


def test_a_recipes_workers_are_those_that_share_a_layer() -> None:
    setting = Setting(purpose="fast", why="w", when=When(workers=[4]), engine_kwargs={"max_num_seqs": 8})
    ranked = document(workers=4, max_total_tokens=8192, engine_kwargs={"data_parallel_size": 4})
    assert not missing_lines(recipe(setting), ranked)


def test_figures_for_gpus_are_not_for_cpus() -> None:
    fast = Setting(purpose="fast", why="w", engine_kwargs={"max_num_seqs": 8})
    newer = Setting(purpose="correct", why="w", when=When(below_capability="9.0"), engine_kwargs={"block_size": 16})
    assert sentences(document("CPU"), recipe(fast, newer)) == []


def test_environment_is_written_too_but_a_length_costs_memory() -> None:
    setting = Setting(purpose="correct", why="it must", env_vars={"VLLM_USE_DEEP_GEMM": "0"}, max_total_tokens=4096)
    known = recipe(setting)
    assert missing_lines(known, document()) == {("engine_config", "runtime_env", "env_vars", "VLLM_USE_DEEP_GEMM"): "0"}
    (notice,) = sentences(document(), known)
    assert "add `VLLM_USE_DEEP_GEMM: '0'` in runtime_env.env_vars and `max_total_tokens: 4096`" in notice
    decided = document(max_total_tokens=1, runtime_env={"env_vars": {"VLLM_USE_DEEP_GEMM": "1"}})
    assert missing_lines(known, decided) == {}


def test_a_file_with_faults_of_any_kind_is_advised_or_left_alone() -> None:
    for text in (
        "engine_config: 3",
        "scaling_config: [1]",
        "engine_config: {engine_kwargs: x, runtime_env: 1, model_id: 7, max_total_tokens: many}",
        "engine_config: {engine_kwargs: {tool_call_parser: [a], reasoning_parser: {b: 1}, max_num_seqs: []}}",
        "[]",
    ):
        assert isinstance(recipe_findings(parse_document(text.encode(), "m.yaml"), recipe(TOOLS, THINKS)), list)


def test_an_embedding_model_of_our_own_keys_needs_no_runner() -> None:
    known = recipe_of("Qwen/Qwen3-Embedding-0.6B")
    assert known is not None
    assert list(missing_lines(known, document())) == [("engine_config", "engine_kwargs", "runner")]
    assert missing_lines(known, document(model_type="embedding")) == {}


def test_weights_in_a_folder_have_the_recipe_of_the_name_that_they_go_by() -> None:
    coder = {"model_id": "Qwen/Qwen3-Coder-30B-A3B-Instruct"}
    assert case_of({"engine_config": {**coder, "hf_model_id": "/weights/coder"}}).hf_id == coder["model_id"]
    assert case_of({"engine_config": {**coder, "hf_model_id": "org/m"}}).hf_id == "org/m"


def test_a_plan_refuses_what_a_recipe_knows_not_to_work() -> None:
    """TP8 ends in a ValueError, after a p4de has started and 480 GB are loaded."""
    coder = model("Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8", "A100-80G", workers=8)
    with pytest.raises(InputErrors) as raised:
        planned([coder], stack(pool(accelerator="A100-80G", instanceTypes=["p4de.24xlarge"])))
    (found,) = [f for f in raised.value.findings if "320 is not divisible" in f.message]
    assert found.path == "scaling_config.num_workers" and found.line and "write `num_workers: 4`" in found.message


def test_a_plan_does_not_repeat_the_notices_of_check() -> None:
    made = planned([model("Qwen/Qwen3-0.6B", "L4")], stack(pool()))
    assert not [notice for notice in made.notices if "recipes@" in notice.message]


def test_a_parser_that_empties_the_answers_is_a_warning() -> None:
    instruct = model("Qwen/Qwen3-4B-Instruct-2507", "L4", engine_kwargs={"reasoning_parser": "qwen3"})
    made = planned([instruct], stack(pool()))
    assert [str(f.severity) for f in made.notices if "never thinks" in f.message] == ["warning"]


AWQ = Checkpoints(format="AWQ", why="a third", when=When(below_capability="8.9"), ids={"org/M": "org/M-AWQ"})
FP8 = Checkpoints(format="FP8", why="half", when=When(from_capability="8.9"), ids={"org/M": "org/M-FP8"})
REFUSED = KnownBad(
    when=When(ids=["*-FP8"], workers=[8]), severity="error", message="m", fix="f", at="scaling_config.num_workers"
)


@pytest.mark.parametrize(
    ("accelerator", "engine", "workers", "offered"),
    [
        ("L4", {}, 1, "org/M-FP8"),
        ("T4", {}, 1, "org/M-AWQ"),
        ("CPU", {}, 1, None),
        ("L4", {"hf_model_id": "org/m"}, 1, None),
        ("L4", {"s3_mirror_config": {"bucket_uri": "s3://b/m"}}, 1, None),
        ("T4", {"engine_kwargs": {"quantization": "bitsandbytes"}}, 1, None),
        ("L4", {"model_id": "org/m-other"}, 1, None),
        ("L4", {}, 8, None),
    ],
    ids=[
        "native",
        "older GPU",
        "CPU",
        "kept",
        "a mirror of its own",
        "quantized anyway",
        "another model",
        "known not to work",
    ],
)
def test_a_smaller_checkpoint_is_offered_where_the_gpu_gains_by_it(
    accelerator: str, engine: dict[str, Any], workers: int, offered: str | None
) -> None:
    known = recipe(checkpoints=[AWQ, FP8], known_bad=[REFUSED])
    found = sentences(document(accelerator, workers=workers, **engine), known)
    assert [offered] * bool(offered) == [re.findall(r"`hf_model_id: ([^`]+)`", one)[0] for one in found]
    assert missing_lines(known, document(accelerator)) == {}, "other weights are nothing that --fix decides"


EP = {"enable_expert_parallel": True}
FP8_CACHE = {"kv_cache_dtype": "fp8"}


@pytest.mark.parametrize(
    ("hf_id", "engine", "workers", "severity", "message"),
    [
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", {}, 8, "error", "1536 rows over 8 GPUs"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", {}, 4, None, ""),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", {}, 8, None, ""),
        ("Qwen/Qwen3-4B-Instruct-2507", {"engine_kwargs": {"reasoning_parser": "qwen3"}}, 1, "warning", "stays empty"),
        ("Qwen/Qwen3-4B", {"engine_kwargs": {"reasoning_parser": "qwen3"}}, 1, None, ""),
        ("Qwen/Qwen3-VL-8B-Instruct", {"engine_kwargs": {"reasoning_parser": "qwen3"}}, 1, "warning", "never thinks"),
        ("Qwen/Qwen3-VL-8B-Thinking", {"engine_kwargs": {"reasoning_parser": "qwen3"}}, 1, None, ""),
        (
            "Qwen/Qwen3-Coder-30B-A3B-Instruct",
            {"engine_kwargs": {"tool_call_parser": "hermes"}},
            1,
            "warning",
            "as XML",
        ),
        ("Qwen/Qwen3.8-27B", {"engine_kwargs": {"tool_call_parser": "hermes"}}, 1, "warning", "as XML"),
        ("Inferact/Qwen3.8-27B-MXFP4", {}, 1, "error", "does not load on NVIDIA"),
        ("Qwen/Qwen3.8-Flash-Next-FP8", {}, 8, "error", "over 8 GPUs"),
        ("Qwen/Qwen3.8-Flash-Next-FP8", {"engine_kwargs": EP}, 8, None, ""),
        ("MiniMaxAI/MiniMax-M2.5", {}, 8, "error", "over 8 GPUs"),
        ("MiniMaxAI/MiniMax-M2.5", {"engine_kwargs": EP}, 8, None, ""),
        ("nvidia/MiniMax-M2.5-NVFP4", {}, 8, None, ""),
        ("XiaomiMiMo/MiMo-V2.5", {"engine_kwargs": EP}, 8, "error", "with expert parallelism or without"),
        ("stepfun-ai/Step-3.5-Flash-FP8", {}, 4, "error", "more than 2 GPUs"),
        ("MiniMaxAI/MiniMax-M3", {"engine_kwargs": {"block_size": 16}}, 8, "error", "blocks of 128"),
        ("MiniMaxAI/MiniMax-M3", {"engine_kwargs": {"block_size": 128}}, 8, None, ""),
        ("zai-org/GLM-5.3-Flash", {"engine_kwargs": FP8_CACHE}, 8, "error", "only on Blackwell"),
        ("nvidia/GLM-5.2-NVFP4", {}, 8, "error", "Blackwell only"),
        ("google/gemma-3-4b-it", {"engine_kwargs": {"dtype": "half"}}, 1, "error", "in float16"),
        ("google/gemma-3n-E4B-it", {"engine_kwargs": {"dtype": "half"}}, 1, None, ""),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", {}, 1, "error", "since 0.10.2"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {"engine_kwargs": FP8_CACHE}, 1, "warning", "FP8 checkpoint"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-FP8", {"engine_kwargs": FP8_CACHE}, 1, None, ""),
        ("mistralai/Mistral-Small-4-119B-2603", {"max_total_tokens": 262145}, 4, "warning", "promises 262144"),
        ("mistralai/Mistral-Small-4-119B-2603", {"max_total_tokens": 262144}, 4, None, ""),
        ("moonshotai/Kimi-K3", {"engine_kwargs": FP8_CACHE}, 8, "warning", "another prefill"),
        ("XiaomiMiMo/MiMo-V2.6-Flash-RL", {}, 4, "warning", "repeat tool calls"),
        ("google/translategemma-27b-it", {}, 1, "warning", "source_lang_code"),
    ],
)
def test_what_is_known_not_to_work_is_found_and_its_neighbours_are_not(
    hf_id: str, engine: dict[str, Any], workers: int, severity: str | None, message: str
) -> None:
    asked = document(workers=workers, **{"model_id": hf_id, **engine})
    found = known_bad_findings(asked, recipe_of(hf_id))
    assert [str(finding.severity) for finding in found] == [severity] * bool(severity)
    assert all(message in finding.message for finding in found)
