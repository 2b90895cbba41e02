"""What serves a model without modelfleet, and that an import of it is the same model file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.infra.interchange.draft import merge_patch, patch_between
from modelfleet.infra.interchange.export import to_ray_serve_llm, to_vllm
from modelfleet.infra.interchange.reading import read_drafts
from modelfleet.infra.interchange.writing import text_of
from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.load import LoadedModel, load_models, model_of

ROOT = Path(__file__).parents[3]
FILES = [*sorted((ROOT / "models").rglob("*.yaml")), *sorted((ROOT / "tests/unit/config/rayllm").rglob("*.yaml"))]
FORMATS = {"vllm": to_vllm, "ray-serve-llm": to_ray_serve_llm}
MORE = """
deployment_config: {num_replicas: 2}
engine_config:
  model_id: team/support
  hf_model_id: Qwen/Qwen3-8B
  revision: abc
  max_total_tokens: 16384
  engine_kwargs:
    speculative_config: {method: ngram, num_speculative_tokens: 4}
    enable_prefix_caching: false
    limit_mm_per_prompt: {image: 2}
    cudagraph_capture_sizes: [1, 2, 4]
    enable_auto_tool_choice: true
    tool_call_parser: hermes
    generation_config: auto
  generation: {generate_kwargs: {temperature: 0.5}, stopping_sequences: ["it's \\" over", 7]}
  runtime_env: {env_vars: {VLLM_LOGGING_LEVEL: DEBUG, OWN: "a b'c"}}
  s3_mirror_config: {bucket_uri: s3://weights/qwen}
  lora: [{name: sql, source: team/sql}]
scaling_config: {num_workers: 2, placement_strategy: STRICT_PACK, resources_per_worker: {accelerator_type:L4: 0.001}}
"""


def loaded() -> list[LoadedModel]:
    # A stack has each id once; the files of one id are variants.
    found = [one for path in FILES for one in load_models([path]).models]
    more, findings = model_of(parse_document(MORE.encode(), "more.yaml"))
    assert more is not None, findings
    return [*found, more]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("model", loaded(), ids=lambda model: str(model.file).rpartition("models/")[2])
def test_an_import_of_an_export_is_the_same_model(model: LoadedModel, to: str) -> None:
    (draft,) = read_drafts(FORMATS[to](model), "exported")
    assert draft.holes == {}
    again, findings = model_of(parse_document(text_of(draft).encode(), "again.yaml"))
    assert again is not None, findings
    assert again.config == model.config


def test_the_command_has_what_vllm_has_a_word_for() -> None:
    model = loaded()[-1]
    script = to_vllm(model)
    command = script[script.index("exec ") :]
    for word in ("vllm serve s3://weights/qwen", "--served-model-name team/support", "--max-model-len 16384", "--tensor-parallel-size 2",
                 "--no-enable-prefix-caching", "--load-format runai_streamer", "--revision abc", "--cudagraph-capture-sizes 1 2 4"):  # fmt: skip
        assert word in command
    assert "export VLLM_LOGGING_LEVEL=DEBUG" in script
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_the_command_says_what_each_of_several_nodes_adds_and_comes_back_as_it_was() -> None:
    text = MORE.replace(
        "    speculative_config: {method: ngram, num_speculative_tokens: 4}\n", "    pipeline_parallel_size: 2\n"
    )
    text = text.replace("  lora: [{name: sql, source: team/sql}]\n", "").replace("num_workers: 2, placement_strategy: STRICT_PACK", "num_workers: 4")  # fmt: skip
    model, findings = model_of(parse_document(text.encode(), "staged.yaml"))
    assert model is not None and not findings, findings
    script = to_vllm(model)
    assert "# On each of 2 nodes: append --nnodes 2 --node-rank RANK --master-addr FIRST" in script
    assert "--tensor-parallel-size 2" in script and "# On each" not in to_vllm(loaded()[-1])
    (draft,) = read_drafts(script, "exported")
    again, _ = model_of(parse_document(text_of(draft).encode(), "again.yaml"))
    assert again is not None and again.config == model.config


def test_ray_has_replicas_accelerator_and_arguments_in_its_own_keys() -> None:
    data = yaml.safe_load(to_ray_serve_llm(loaded()[-1]))
    (llm,) = data["applications"][0]["args"]["llm_configs"]
    assert llm["accelerator_type"] == "L4" and llm["deployment_config"] == {"num_replicas": 2}
    assert llm["engine_kwargs"]["tensor_parallel_size"] == 2
    assert llm["model_loading_config"]["model_source"] == {"bucket_uri": "s3://weights/qwen"}


def test_ray_gets_no_key_that_it_has_not() -> None:
    """It would end with the first unknown one; an import has them again."""
    own = """{prefix_cache_affinity: false, slo: {ttft_p95_ms: 800}, autoscaling_config: {
      max_replicas: 3, target_ongoing_requests: 4, policy: kv_use, target_kv_use: 0.5}}"""
    model, findings = model_of(parse_document(MORE.replace("{num_replicas: 2}", own).encode(), "own.yaml"))
    assert model is not None, findings
    (draft,) = read_drafts(to_ray_serve_llm(model), "exported")
    again, _ = model_of(parse_document(text_of(draft).encode(), "again.yaml"))
    assert again is not None and again.config.deployment_config == model.config.deployment_config
    (llm,) = yaml.safe_load(to_ray_serve_llm(model))["applications"][0]["args"]["llm_configs"]
    assert llm["deployment_config"] == {"autoscaling_config": {"max_replicas": 3, "target_ongoing_requests": 4}}


@pytest.mark.parametrize("to", FORMATS)
def test_data_parallel_ranks_leave_and_come_back(to: str) -> None:
    text = MORE.replace("    enable_prefix_caching: false\n", "    data_parallel_size: 2\n")
    text = text.replace("  lora: [{name: sql, source: team/sql}]\n", "")
    model, findings = model_of(parse_document(text.encode(), "ranked.yaml"))
    assert model is not None and not findings, findings
    written = FORMATS[to](model)
    (draft,) = read_drafts(written, "exported")
    again, _ = model_of(parse_document(text_of(draft).encode(), "again.yaml"))
    assert again is not None and again.config == model.config
    if to == "vllm":
        assert "--data-parallel-size 2" in written and "--tensor-parallel-size" not in written
    else:
        assert "max_ongoing_requests and target_ongoing_requests are a rank's" in written
        application = yaml.safe_load(written)["applications"][0]
        assert application["import_path"] == "ray.serve.llm:build_dp_openai_app"
        assert application["args"]["llm_config"]["engine_kwargs"]["data_parallel_size"] == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text("ab", max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)


def without_nulls(value: Any) -> Any:
    return (
        {key: without_nulls(one) for key, one in value.items() if one is not None} if isinstance(value, dict) else value
    )


@settings(max_examples=200, deadline=None)
@given(JSON, JSON)
def test_a_merge_patch_makes_the_second_of_the_first(before: Any, after: Any) -> None:
    before, after = without_nulls(before), without_nulls(after)
    assert merge_patch(before, patch_between(before, after)) == after


def run(*arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelfleet.cli.main", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )


def test_the_commands_leave_and_come_back(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    source = ROOT / "models/l4/HuggingFaceTB--SmolLM2-1.7B-Instruct.yaml"
    (tmp_path / "models" / "here.yaml").write_text(source.read_text())
    done = run("export", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "--to", "vllm", "--out", "serve.sh", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    back = run("import", "serve.sh", "--out", "back", cwd=tmp_path)
    assert back.returncode == 0, back.stderr
    assert "0 values to fill in" in back.stderr and "modelfleet check back/" in back.stderr
    assert run("check", "back", cwd=tmp_path).returncode == 0
    again = run("import", "serve.sh", "--out", "back", cwd=tmp_path)
    assert again.returncode == 1 and "--force" in again.stderr
    wrong = run("export", "SmolLM2", cwd=tmp_path)
    assert wrong.returncode == 1 and "is no file and no model_id in models/" in wrong.stderr


def test_a_refused_file_keeps_all_from_being_written_and_standard_input_is_read(tmp_path: Path) -> None:
    (tmp_path / "good.sh").write_text("vllm serve a/b\n")
    (tmp_path / "bad.yaml").write_text("kind: [\n")
    done = run("import", "good.sh", "bad.yaml", "none.yaml", cwd=tmp_path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "models").exists()
    piped = run(
        "import", "-", "--accelerator", "L4", "--out", "-", cwd=tmp_path, stdin="vllm serve a/b --max-model-len 1k"
    )
    assert piped.returncode == 0 and yaml.safe_load(piped.stdout)["engine_config"]["max_total_tokens"] == 1000
    wrong = run("import", "-", "--accelerator", "L5", cwd=tmp_path, stdin="vllm serve a/b")
    assert wrong.returncode == 1 and "allowed are A100-40G" in wrong.stderr
