"""Recipes: which a model has, and that vLLM has everything they name. Otherwise `check` sends people to a TypeError."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from modelfleet.infra.catalog.recipes import (
    FOLDER,
    Checkpoints,
    KnownBad,
    Purpose,
    Recipe,
    Setting,
    When,
    default_recipes,
    read_recipes,
    recipe_of,
)
from modelfleet.infra.planning import recipe_findings
from modelfleet.infra.planning.recipe_findings import known_bad_findings, missing_lines
from modelfleet.serving.config.accelerators import known_gpus
from modelfleet.serving.config.catalogs import csv_rows, parsers
from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.errors import InputErrors, errors_in
from modelfleet.serving.config.load import model_of
from modelfleet.serving.config.rayllm.fix import text_with
from modelfleet.serving.config.section import Section

ROOT = Path(__file__).parents[3]
ROWS = list(csv_rows(Path(__file__).parent / "parsers-by-model.csv"))
#: Where a recipe goes another way than the table, and why: (tool call parser, reasoning parser).
OTHERWISE = {
    # vllm#28297 and others serve it so.
    **{f"Qwen/Qwen3-VL-{size}-Instruct": ("hermes", "") for size in ("2B", "4B", "8B", "32B", "30B-A3B", "235B-A22B")},
    "Qwen/Qwen2.5-7B-Instruct": ("hermes", ""),  # vLLM's documents on tool calling
    "Qwen/Qwen2.5-Coder-7B-Instruct": ("hermes", ""),
    "Qwen/Qwen2.5-Coder-32B-Instruct": ("hermes", ""),
    "zai-org/GLM-GA": ("", "glm45"),  # its recipe has it among the arguments for everybody
    "deepseek-ai/DeepSeek-V4-Flash-Vision-Exp": ("deepseek_v4", "deepseek_v4"),  # as the other V4
    "deepseek-ai/DeepSeek-V3": ("deepseek_v3", ""),  # it does not think
    "openai/gpt-oss-120b": ("openai", ""),  # vLLM 0.32 sets its reasoning parser itself
    "openai/gpt-oss-20b": ("openai", ""),
    "baidu/ERNIE-4.5-VL-28B-A3B-PT": ("", "ernie45"),  # vLLM's documents on reasoning
    "ibm-granite/granite-3.2-2b-instruct": ("granite", "granite"),
    "allenai/Olmo-3-7B-Instruct": ("olmo3", ""),  # it does not think
    "pfnet/plamo-3-nict-31b-base": ("", ""),  # a base model calls nothing
}


def written(text: str) -> str:
    return f"family: F\nids: ['org/*']\nsource: a card\ndate: 2026-08-21\n{text}"


def faults(folder: Path, **files: str) -> list[str]:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    with pytest.raises(InputErrors) as raised:
        read_recipes(folder)
    return [finding.sentence() for finding in raised.value.findings]


def lines_of(hf_id: str) -> dict[str, object]:
    """What the recipe of a model adds to a file that says nothing."""
    document = parse_document(f"engine_config: {{model_id: {hf_id}}}".encode(), "m.yaml")
    return {str(path[-1]): value for path, value in missing_lines(recipe_of(hf_id), document).items()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["hf_id"])
def test_a_models_recipe_names_the_parsers_of_its_card(row: dict[str, str]) -> None:
    expected = OTHERWISE.get(row["hf_id"], (row["tool_call_parser"], row["reasoning_parser"]))
    lines = lines_of(row["hf_id"])
    for name, parser in zip(("tool_call_parser", "reasoning_parser"), expected, strict=True):
        ours = str(lines.get(name, ""))
        assert parsers(name).get(ours, ours) == parsers(name).get(parser, parser), "two names of one class are equal"


def test_every_decision_against_the_table_is_one() -> None:
    table = {row["hf_id"]: (row["tool_call_parser"], row["reasoning_parser"]) for row in ROWS}
    assert [hf_id for hf_id, decided in OTHERWISE.items() if table[hf_id] == decided] == []


@pytest.mark.parametrize(
    ("hf_id", "file"),
    [
        ("Qwen/Qwen3-8B", "qwen3"),
        ("qwen/qwen3-8b-fp8", "qwen3"),
        ("RedHatAI/Qwen3-32B-NVFP4", "qwen3"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3-coder"),
        ("Qwen/Qwen3-Coder-Next", "qwen3-coder"),
        ("Qwen/Qwen3-Embedding-0.6B", "qwen3-embedding"),
        ("Qwen/Qwen3-Reranker-8B", "qwen3-reranker"),
        ("Qwen/Qwen3-VL-Reranker-2B", "qwen3-reranker"),
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen-vl"),
        ("Qwen/Qwen3.8-27B", "qwen3.5"),
        ("Qwen/Qwen3.8-Flash-Next", "qwen3.8-flash-next"),
        ("zai-org/GLM-5.3", "glm-5"),
        ("zai-org/GLM-5.3-Flash", "glm-5.3-flash"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek-v3.2"),
        ("deepseek-ai/DeepSeek-V4.1-Flash", "deepseek-v4.1"),
        ("nvidia/DeepSeek-R1-0528-NVFP4-v2", "deepseek-r1"),
        ("google/diffusiongemma-26B-A4B-it", "diffusiongemma"),
        ("mistralai/Devstral-Small-2-24B-Instruct-2512", "mistral"),
        ("meta-llama/Llama-2-7b-chat-hf", None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", None),
    ],
)
def test_the_longest_pattern_decides_in_any_case(hf_id: str, file: str | None) -> None:
    recipe = recipe_of(hf_id)
    assert (recipe and next(name for name, one in default_recipes().items() if one is recipe)) == (
        file and f"{file}.yaml"
    )


def test_a_fine_tune_has_the_recipe_of_its_model_type() -> None:
    tuned = recipe_of("/models/ours", "qwen3")
    assert tuned is not None and tuned.family == "Qwen3"
    assert recipe_of("/models/ours", "llama") is None, "many families have this type"
    assert recipe_of("/models/ours") is None


def test_no_model_has_two_recipes_of_equal_right() -> None:
    for row in ROWS:
        lengths = sorted((recipe.longest_match(row["hf_id"]) for recipe in default_recipes().values()), reverse=True)
        assert lengths[0] == 0 or lengths[0] > lengths[1], row["hf_id"]


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_every_statement_has_a_source_and_a_date(name: str) -> None:
    recipe = default_recipes()[name]
    for part in [*recipe.settings, *recipe.known_bad, *recipe.checkpoints]:
        source, _, date = recipe.basis(part).rpartition(", ")
        assert len(source) > 10 and "2025-01-01" < date < "2027-01-01"


def test_a_condition_on_ids_stays_inside_its_recipe() -> None:
    """A pattern without `*` that another recipe claims never holds."""
    for name, recipe in default_recipes().items():
        for when in [part.when for part in recipe.settings] + [part.when for part in recipe.known_bad]:
            whole = [pattern.replace("*/", "org/") for pattern in when.ids if "*" not in pattern[2:]]
            assert [hf_id for hf_id in whole if recipe_of(hf_id) is not recipe] == [], name


def test_a_smaller_checkpoint_has_the_same_recipe() -> None:
    """Otherwise following one notice would earn others."""
    for name, recipe in default_recipes().items():
        for group in recipe.checkpoints:
            for whole, smaller in group.ids.items():
                assert recipe_of(whole) is recipe is recipe_of(smaller), (name, smaller)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)], ids=str)
def test_a_file_with_the_lines_of_its_recipe_is_valid_and_lacks_nothing(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check --fix --recipes` must not write what `check` refuses, on any generation of GPUs."""
    gpu = replace(known_gpus()["A100-80G"], compute_capability=capability)
    monkeypatch.setattr(recipe_findings, "known_gpus", lambda: {"A100-80G": gpu})
    for hf_id, workers in product((row["hf_id"] for row in ROWS), (1, 8)):
        text = (
            f"engine_config:\n  model_id: {hf_id}\nscaling_config:\n  num_workers: {workers}\n"
            "  placement_strategy: STRICT_PACK\n  resources_per_worker: {'accelerator_type:A100-80G': 0.001}\n"
        )
        recipe, before = recipe_of(hf_id), parse_document(text.encode(), "m.yaml")
        added = parse_document(text_with(text, "m.yaml", missing_lines(recipe, before)).encode(), "m.yaml")
        assert [finding.sentence() for finding in errors_in(model_of(added)[1])] == []
        assert missing_lines(recipe, added) == {}, hf_id
        bad = {finding.message for finding in known_bad_findings(added, recipe)}
        assert bad <= {finding.message for finding in known_bad_findings(before, recipe)}, "its own lines are not bad"


def test_an_fp8_cache_is_for_gpus_that_have_fp8() -> None:
    """vLLM refuses it on an A100."""
    for name, recipe in default_recipes().items():
        for setting in recipe.settings:
            if str(setting.engine_kwargs.get("kv_cache_dtype", "")).startswith("fp8"):
                assert float(setting.when.from_capability or 0) >= 8.9, name


@pytest.mark.slow
def test_vllm_takes_every_argument_of_every_recipe() -> None:
    """By its own classes, so that nested keys and values count too; no engine starts."""
    code = """
from dataclasses import fields
from modelfleet.infra.catalog.recipes import default_recipes
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
front_end = {field.name for field in fields(FrontendArgs)}
faults = []
for name, recipe in default_recipes().items():
    for setting in recipe.settings:
        kwargs = setting.engine_kwargs
        try:
            AsyncEngineArgs(model="m", **{key: value for key, value in kwargs.items() if key not in front_end})
        except Exception as error:
            faults.append(f"{name}: {error}")
        for key, manager in (("tool_call_parser", ToolParserManager), ("reasoning_parser", ReasoningParserManager)):
            if key in kwargs and kwargs[key] not in manager.list_registered():
                faults.append(f"{name}: {kwargs[key]}")
print("FAULTS", faults)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    assert "FAULTS []" in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("settings: [{purpose: tools, engine_kwargs: {tool_call_parser: hermez}}]", "found 'hermez'; did you mean hermes?"),
        ("settings: [{purpose: fast, why: w, engine_kwargs: {max_num_seq: 1}}]", "did you mean max_num_seqs?"),
        ("settings: [{purpose: fast, why: w, env_vars: {VLLM_USE_DEEPGEMM: '1'}}]", "did you mean VLLM_USE_DEEP_GEMM?"),
        ("settings: [{purpose: fast, engine_kwargs: {max_num_seqs: 1}}]", "purpose 'fast' needs it"),
        ("settings: [{purpose: tools}]", "sets nothing"),
        ("settings: [{purpose: quick, why: w, max_total_tokens: 1}]", "allowed are 'tools', 'reasoning', 'correct' or 'fast'"),
        ("settings: [{purpose: fast, why: w, max_total_tokens: 1, wen: {}}]", "did you mean when?"),
        ("known_bad: [{when: {engine_kwargs: {block_siz: [1]}}, severity: error, message: m, fix: f, at: a}]", "block_size?"),
        ("known_bad: [{when: {from_capability: '9'}, severity: error, message: m, fix: f, at: a}]", "from_capability"),
    ],
)  # fmt: skip
def test_a_fault_in_a_recipe_is_named_with_its_line(text: str, fault: str, tmp_path: Path) -> None:
    (found,) = faults(tmp_path, f=written(text))
    assert found.startswith("f.yaml:5: ") and fault in found


def test_a_recipe_without_a_source_or_date_is_refused(tmp_path: Path) -> None:
    found = faults(tmp_path, f="family: F\nids: ['org/*']\n", g="a: [")
    assert [one.split(": ", 1)[1] for one in found[:2]] == [
        "date: is missing; it is required",
        "source: is missing; it is required",
    ]
    assert "is not YAML" in found[2], "every fault of every file at once"


def test_a_pattern_in_two_files_is_refused(tmp_path: Path) -> None:
    assert faults(tmp_path, f=written(""), g=written("").replace("org", "ORG")) == [
        "g.yaml: ids: found 'ORG/*', which f.yaml has too"
    ]


def test_every_key_of_a_recipe_is_documented() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    parts: dict[str, type[Section]] = {
        "recipe": Recipe,
        "setting": Setting,
        "checkpoints": Checkpoints,
        "known_bad": KnownBad,
        "when": When,
    }
    for part, kind in parts.items():
        (row,) = re.findall(rf"^\| {part} \| (.+) \|$", page, re.MULTILINE)
        shared = {"source", "date"} if kind is not Recipe else set()
        assert set(re.findall(r"`(\w+)`", row)) >= kind.model_fields.keys() - shared, part
    assert set(get_args(Purpose)) <= set(re.findall(r"`(\w+)`", page))


def test_the_example_of_the_page_is_a_recipe(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.+?)```", (ROOT / "docs" / "recipes.md").read_text(), re.DOTALL)
    (tmp_path / "example.yaml").write_text(example)
    assert read_recipes(tmp_path)["example.yaml"].family == "Qwen3"
