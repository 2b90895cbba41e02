"""Checks engine arguments against the pinned vLLM's own list. Otherwise: a TypeError after a 40-minute start."""

from __future__ import annotations

import json

import pytest

from modelfleet.serving.config.catalogs import architecture_fault, engine_arguments, front_end_arguments, removed
from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.engine_rules import FRONT_END, RESERVED
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import model_of


def findings_of(kwargs: str, more: str = "") -> list[Finding]:
    text = (
        f"engine_config:\n  model_id: a/b\n  engine_kwargs: {kwargs}\n{more}"
        "scaling_config:\n  num_workers: 1\n  placement_strategy: STRICT_PACK\n"
        "  resources_per_worker: {'accelerator_type:L4': 0.001}\n"
    )
    return model_of(parse_document(text.encode(), "m.yaml"))[1]


def only(kwargs: str, more: str = "") -> Finding:
    findings = findings_of(kwargs, more)
    assert len(findings) == 1, [finding.sentence() for finding in findings]
    return findings[0]


@pytest.mark.parametrize(
    "kwargs",
    [
        "{trust_remote_code: true, max_num_batched_tokens: 4096, max_num_seqs: 64, gpu_memory_utilization: 0.95}",
        "{quantization: awq}",
        "{dtype: half}",
        "{gpu_memory_utilization: 1}",
        "{max_lora_rank: 64, enable_lora: true}",
        "{speculative_config: {method: ngram, num_speculative_tokens: 3}}",
        "{hf_overrides: {rope_parameters: {rope_theta: 10000}}}",
        "{compilation_config: {cudagraph_mode: NONE}}",
        "{enable_auto_tool_choice: true, tool_call_parser: hermes}",
        "{enable_auto_tool_choice: true, tool_call_parser: mine, tool_parser_plugin: /opt/mine.py}",
        "{reasoning_parser: ''}",
        "{kv_cache_dtype: fp8, enable_prefix_caching: null, block_size: 16}",
        "{limit_mm_per_prompt: {image: 2}, optimization_level: 1}",
    ],
)
def test_arguments_that_vllm_takes_are_accepted(kwargs: str) -> None:
    assert findings_of(kwargs) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ("{max_num_seq: 1}", "unknown to vLLM 0.32.0, did you mean max_num_seqs?"),
        ("{zzz: 1}", "names is similar; schemas/model.schema.json lists them"),
        ("{max_num_seqs: many}", "found 'many'; a whole number is expected"),
        ("{max_num_seqs: 2.5}", "found 2.5; a whole number is expected"),
        ("{max_num_seqs: true}", "found true; a whole number is expected"),
        ("{max_num_seqs: 0}", "found 0; must be at least 1"),
        ("{gpu_memory_utilization: 95}", "found 95; must be at most 1"),
        ("{gpu_memory_utilization: 0}", "found 0; must be above 0"),
        ("{gpu_memory_utilization: null}", "found null; leave it out for vLLM's default"),
        ("{trust_remote_code: 'yes please'}", "true or false is expected"),
        ("{dtype: bf16}", "found 'bf16'; did you mean bfloat16?"),
        ("{dtype: int3}", "found 'int3'; "),
        ("{quantization: squeezellm}", "left vLLM after 0.4.3 (gone in 0.6.6)"),
        ("{quantization: gguf}", "left vLLM after 0.20.0 (gone in 0.28.0)"),
        ("{quantization: awqq}", "did you mean awq?"),
        ("{quantization: [awq]}", "text is expected"),
        ("{compilation_config: {cudagraph_mod: 1}}", "unknown, did you mean cudagraph_mode?"),
        ("{max_num_batched_tokens: 8, max_num_seqs: 64}", "found 8; must be at least max_num_seqs, 64"),
        ("{enable_auto_tool_choice: true}", "needs tool_call_parser"),
        ("{enable_auto_tool_choice: true, tool_call_parser: hermez}", "found 'hermez'; did you mean hermes?"),
        ("{reasoning_parser: qwen}", "found 'qwen'; did you mean qwen3?"),
        ("{rope_scaling: {type: linear}}", "left vLLM after 0.10.2 (gone in 0.12.0)"),
        ("{guided_decoding_backend: x}", "today: structured_outputs_config: {backend: ...}"),
        ("{host: 0.0.0.0}", "the gateway in front does this"),
        ("{allowed_origins: ['*']}", "the gateway in front does this"),
        ("{load_s3_path: s3://b/p}", "use s3_mirror_config.bucket_uri"),
    ],
)
def test_arguments_that_vllm_does_not_take_are_found(kwargs: str, message: str) -> None:
    finding = only(kwargs)
    assert message in finding.message
    assert finding.line == 3 and finding.severity is Severity.ERROR


def test_whole_prompts_must_fit_a_batch() -> None:
    finding = only("{max_num_batched_tokens: 1024, enable_chunked_prefill: false}", "  max_total_tokens: 2048\n")
    assert "without chunked prefill it must be at least max_total_tokens, 2048" in finding.message


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_reserved_argument_is_refused_with_the_key_to_use_instead(name: str) -> None:
    if name in removed("arguments") and removed("arguments")[name].drop:
        assert only(f"{{{name}: 1}}").severity is Severity.NOTICE, "old files have it"
    else:
        assert only(f"{{{name}: 1}}").message.startswith("cannot be set here: ")


def test_a_template_of_the_checkpoint_and_a_prompt_format_exclude_each_other() -> None:
    more = "  generation: {prompt_format: {system: '{instruction}', user: '{instruction}', assistant: '{instruction}', "
    finding = only("{chat_template: x.jinja}", more + "trailing_assistant: ''}}\n")
    assert "keep one of them" in finding.message


@pytest.mark.parametrize("name", sorted(name for name, entry in removed("arguments").items() if entry.drop))
def test_arguments_that_vllm_no_longer_needs_are_dropped_with_a_notice(name: str) -> None:
    finding = only(f"{{{name}: 1}}")
    assert finding.severity is Severity.NOTICE and "left vLLM after" in finding.message


def test_the_facts_do_not_contradict_each_other() -> None:
    known = engine_arguments().keys() | front_end_arguments().keys()
    assert not removed("arguments").keys() & known, "an argument is either removed or present, not both"
    assert not removed("quantization").keys() & set(engine_arguments()["quantization"]["choices"])
    assert front_end_arguments().keys() >= FRONT_END, "an argument that a model file may set must exist"
    ours = {"worker_use_ray", "load_s3_path"}
    assert RESERVED.keys() - known == ours, "vLLM has every other reserved argument"


def test_a_removed_argument_names_one_that_exists() -> None:
    """The suggested replacement passes the same rules."""
    words = {w.strip("`{:},") for entry in removed("arguments").values() for w in entry.instead.split() if "_" in w}
    ours = {"scaling_config.num_gpus_per_worker", "engine_config.lora"}
    assert words - ours, "the test must look at something"
    nested = {key for entry in engine_arguments().values() for key in entry.get("keys", [])}
    # Keys of arguments that vLLM takes as arbitrary mappings.
    free = {"num_speculative_tokens", "max_model_len", "draft_tensor_parallel_size", "prompt_lookup_max"}
    free |= {"prompt_lookup_min", "rope_parameters", "rope_theta"}
    assert words - ours - engine_arguments().keys() - nested - free == set()


@pytest.mark.parametrize(
    ("architecture", "message"),
    [("MPTForCausalLM", "up to 0.28.0"), ("RWForCausalLM", "FalconForCausalLM"), ("BartModel", "plugin")],
)
def test_a_dropped_architecture_is_explained(architecture: str, message: str) -> None:
    assert message in (architecture_fault(architecture) or "")


def test_an_architecture_that_vllm_has_is_not_a_fault() -> None:
    assert architecture_fault("LlamaForCausalLM") is None


def test_findings_are_json() -> None:
    assert json.loads(json.dumps(only("{zzz: 1}").as_json()))["line"] == 3


@pytest.mark.parametrize(
    ("kwargs", "way"),
    [
        ("{prefill_context_parallel_size: 2}", "raise scaling_config.num_workers"),
        ("{nnodes: 2}", "pipeline_parallel_size is how many nodes it has"),
        ("{data_parallel_size_local: 2}", "data_parallel_size alone says how many"),
        ("{data_parallel_backend: ray}", "raise deployment_config.num_replicas or max_replicas"),
    ],
)
def test_a_refused_kind_of_parallelism_names_the_way_that_there_is(kwargs: str, way: str) -> None:
    found = only(kwargs)
    assert found.severity is Severity.ERROR and way in found.message
    assert findings_of("{enable_expert_parallel: true}") == []
