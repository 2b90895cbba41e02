"""Old files load. Otherwise a team's working files are refused, or silently change their meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import LoadedModel, load_model, model_of
from modelfleet.serving.config.schema import ModelConfig

SHIPPED = Path(__file__).parent / "rayllm"
REFUSED = {
    "squeeze-ai-lab--sq-llama-2-7b-w4-s0.yaml": (21, "engine_config.engine_kwargs.quantization", "AWQ or GPTQ"),
    "trtllm-meta-llama--Llama-2-7b-chat-hf.yaml": (18, "engine_config.type", "Hugging Face checkpoint"),
}

MINIMAL = """\
engine_config:
  model_id: org/name
  type: VLLMEngine
scaling_config:
  num_workers: 1
  resources_per_worker:
    accelerator_type:L4: 0.001
"""


def check(text: str) -> tuple[LoadedModel | None, list[Finding]]:
    return model_of(parse_document(text.encode(), "m.yaml"))


def loaded(text: str) -> ModelConfig:
    model, findings = check(text)
    assert model is not None, [finding.sentence() for finding in findings]
    return model.config


def messages(text: str, severity: Severity) -> dict[str, str]:
    return {finding.path: finding.message for finding in check(text)[1] if finding.severity is severity}


def test_there_are_seven_shipped_files() -> None:
    assert len(list(SHIPPED.glob("*.yaml"))) == 7, "the parametrised tests below must not run on an empty folder"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_file_loads_or_is_refused_for_one_reason(path: Path) -> None:
    model, findings = load_model(path, path.name)
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    if path.name in REFUSED:
        line, key, way_out = REFUSED[path.name]
        assert [(error.line, error.path) for error in errors] == [(line, key)]
        assert way_out in errors[0].message, "a refusal must say what to write instead"
    else:
        assert errors == [] and model is not None


def test_a_shipped_file_means_what_it_meant() -> None:
    model, _ = load_model(SHIPPED / "mistralai--Mixtral-8-7b-Instruct-v01.yaml")
    assert model is not None
    config = model.config
    scaling = config.deployment_config.autoscaling_config
    assert scaling is not None
    assert scaling.target_ongoing_requests == 20
    assert (scaling.upscaling_factor, scaling.downscaling_factor) == (0.6, 0.6)
    assert config.deployment_config.max_ongoing_requests == 192
    assert config.accelerator == "A100-80G"
    assert config.scaling_config.num_workers == 8
    assert config.scaling_config.resources_per_worker == {"accelerator_type:A100-80G": 0.001}


def test_each_old_name_gives_one_notice_that_shows_the_new_spelling() -> None:
    _, findings = load_model(SHIPPED / "meta-llama--Llama-2-7b-chat-hf.yaml", "x.yaml")
    notices = [(f.line, f.path, f.message) for f in findings if f.severity is Severity.NOTICE]
    assert notices == [
        (
            6,
            "deployment_config.autoscaling_config.target_num_ongoing_requests_per_replica",
            "today's name is target_ongoing_requests: 24",
        ),
        (
            9,
            "deployment_config.autoscaling_config.smoothing_factor",
            "today's name is upscaling_factor: 0.6 and downscaling_factor: 0.6",
        ),
        (12, "deployment_config.max_concurrent_queries", "today's name is max_ongoing_requests: 64"),
        (
            15,
            "deployment_config.ray_actor_options.resources.accelerator_type_a10",
            "today's name is accelerator_type:A10G: 0.001",
        ),
        (
            41,
            "scaling_config.resources_per_worker.accelerator_type_a10",
            "today's name is accelerator_type:A10G: 0.001",
        ),
    ]


def test_the_last_of_a_repeated_key_wins_with_a_warning() -> None:
    model, findings = load_model(SHIPPED / "amazon--LightGPT.yaml", "x.yaml")
    assert model is not None
    prompts = model.config.engine_config.generation.prompt_format
    assert prompts is not None and prompts.default_system_message == "", "RayLLM's effective default was empty"
    repeated = [f for f in findings if "appears twice" in f.message]
    assert [(f.line, f.severity) for f in repeated] == [(33, Severity.WARNING)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("accelerator_type_a10", "A10G"),
        ("accelerator_type_a100", "A100-40G"),
        ("accelerator_type_a100_40g", "A100-40G"),
        ("accelerator_type_a100_80g", "A100-80G"),
        ("accelerator_type_a100_80g_aws", "A100-80G"),
        ("accelerator_type_t4", "T4"),
        ("accelerator_type_l4", "L4"),
        ("accelerator_type:a10g", "A10G"),
    ],
)
@pytest.mark.parametrize("amount", ["0.01", "0.1", "0.001"])
def test_every_old_accelerator_name_is_read(old: str, new: str, amount: str) -> None:
    config = loaded(MINIMAL.replace("accelerator_type:L4: 0.001", f"{old}: {amount}"))
    assert config.scaling_config.resources_per_worker == {f"accelerator_type:{new}": 0.001}


def test_a_cpu_file_of_rayllm_loads() -> None:
    text = MINIMAL.replace("num_workers: 1", "num_workers: 1\n  num_gpus_per_worker: 0").replace(
        "accelerator_type:L4", "accelerator_type_cpu"
    )
    assert loaded(text).accelerator == "CPU"


def test_a_cpu_file_without_resources_and_with_the_device_argument_loads() -> None:
    """As in RayLLM's models/continuous_batching/cpu file: `resources_per_worker: {}`, `device: cpu`."""
    text = (
        "deployment_config: {ray_actor_options: {}}\n"
        "engine_config: {model_id: a/b, engine_kwargs: {device: cpu, dtype: float32}}\n"
        "scaling_config: {num_workers: 1, num_gpus_per_worker: 0, num_cpus_per_worker: 32, resources_per_worker: {}}\n"
    )
    config = loaded(text)
    assert config.accelerator == "CPU"
    assert config.engine_config.engine_kwargs == {"dtype": "float32"}
    assert "gone in 0.10.2" in messages(text, Severity.NOTICE)["engine_config.engine_kwargs.device"]


def test_a_replica_on_a_cpu_node_with_workers_on_gpu_nodes_moves_to_its_workers() -> None:
    text = "deployment_config: {ray_actor_options: {resources: {accelerator_type_cpu: 0.01}}}\n" + MINIMAL
    config = loaded(text)
    assert config.deployment_config.ray_actor_options.resources == {"accelerator_type:L4": 0.001}


def test_the_engine_of_v0_2_is_read() -> None:
    """Its files have `scheduler` and `TextGenerationInferenceEngine`, which RayLLM v0.5 itself refused."""
    text = MINIMAL.replace(
        "type: VLLMEngine",
        "type: TextGenerationInferenceEngine\n  model_init_kwargs: {trust_remote_code: true}\n"
        "  scheduler:\n    policy:\n"
        "      max_batch_total_tokens: 12000\n      max_batch_prefill_tokens: 6000\n      max_total_tokens: 4096",
    )
    engine = loaded(text).engine_config
    assert engine.type == "VLLMEngine"
    assert engine.max_total_tokens == 4096
    assert engine.engine_kwargs == {"max_num_batched_tokens": 6000, "trust_remote_code": True}


def test_aviary_files_are_refused_with_the_section_to_write() -> None:
    text = "model_config: {model_id: a/b, batching: static}\nscaling_config: {num_workers: 1, num_gpus_per_worker: 0}\n"
    model, findings = check(text)
    assert model is None
    assert [(f.line, f.path) for f in findings] == [(1, "model_config")], "engine_config is not also reported missing"
    assert "engine_config" in findings[0].message


def test_an_embedding_engine_becomes_a_vllm_engine_for_embeddings() -> None:
    config = loaded(MINIMAL.replace("VLLMEngine", "EmbeddingEngine\n  optimize: onnx\n  max_batch_size: 16"))
    assert config.engine_config.model_type == "embedding"
    assert config.engine_config.max_total_tokens == 512, "the embedding engine's default"


@pytest.mark.parametrize("hf_id", ["mosaicml/mpt-7b-chat", "mosaicml/mpt-30b-chat"])
def test_a_dropped_architecture_is_refused_with_its_last_version(hf_id: str) -> None:
    errors = messages(MINIMAL.replace("org/name", hf_id), Severity.ERROR)
    assert "MPTForCausalLM up to 0.28.0" in errors["engine_config.model_id"]


@pytest.mark.parametrize("key", ["do_sample", "return_token_type_ids", "ignore_eos_token"])
def test_inert_generate_kwargs_are_dropped_with_a_notice(key: str) -> None:
    text = MINIMAL.replace("VLLMEngine", f"VLLMEngine\n  generation: {{generate_kwargs: {{{key}: true, top_p: 0.9}}}}")
    assert loaded(text).engine_config.generation.generate_kwargs == {"top_p": 0.9}
    assert "no effect" in messages(text, Severity.NOTICE)[f"engine_config.generation.generate_kwargs.{key}"]


def test_keys_that_rayllm_read_but_did_not_use_are_dropped_with_a_notice() -> None:
    text = "multiplex_config: {max_num_models_per_replica: 3}\n" + MINIMAL.replace(
        "num_workers: 1", "num_workers: 1\n  pg_timeout_s: 600"
    )
    assert loaded(text)
    assert {"multiplex_config", "scaling_config.pg_timeout_s"} <= messages(text, Severity.NOTICE).keys()


@pytest.mark.parametrize("value", ["{}", "null"])
def test_an_empty_prompt_format_is_none(value: str) -> None:
    text = MINIMAL.replace("VLLMEngine", f"VLLMEngine\n  generation: {{prompt_format: {value}}}")
    assert loaded(text).engine_config.generation.prompt_format is None


@pytest.mark.parametrize(
    "section", ["", "deployment_config:\n", "deployment_config: {autoscaling_config: {max_replicas: 2}}\n"]
)
def test_a_missing_deployment_config_or_actor_options_are_accepted(section: str) -> None:
    """RayLLM's parser accepted files without them and then crashed."""
    assert loaded(section + MINIMAL).deployment_config.ray_actor_options.resources == {}


def test_numbers_in_quotes_are_numbers() -> None:
    assert loaded(MINIMAL.replace("num_workers: 1", 'num_workers: "1"')).scaling_config.num_workers == 1


def test_a_new_name_beats_the_old_one_with_a_warning() -> None:
    text = "deployment_config: {max_concurrent_queries: 7, max_ongoing_requests: 9}\n" + MINIMAL
    assert loaded(text).deployment_config.max_ongoing_requests == 9
    assert "counts" in messages(text, Severity.WARNING)["deployment_config.max_concurrent_queries"]
