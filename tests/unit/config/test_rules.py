"""Rules over several keys: faults are found before anything is made, at the line of the wrong key."""

from __future__ import annotations

import pytest

from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import model_of

GOOD = """\
deployment_config:
  autoscaling_config:
    min_replicas: 1
    initial_replicas: 1
    max_replicas: 4
    target_ongoing_requests: 24
    look_back_period_s: 30
    upscale_delay_s: 30
    downscale_delay_s: 300
  max_ongoing_requests: 64
  ray_actor_options:
    resources:
      accelerator_type:L4: 0.001
engine_config:
  model_id: org/name
  max_total_tokens: 2048
  engine_kwargs:
    max_num_seqs: 64
  generation:
    prompt_format:
      system: "<sys>{instruction}</sys>"
      user: "<user>{instruction}"
      assistant: "<bot>{instruction}"
      trailing_assistant: "<bot>"
    stopping_sequences: ["</s>"]
scaling_config:
  num_workers: 1
  num_gpus_per_worker: 1
  num_cpus_per_worker: 4
  placement_strategy: STRICT_PACK
  resources_per_worker:
    accelerator_type:L4: 0.001
"""


#: Asks for Ray's executor, with a bundle for each worker.
RAY = ("    max_num_seqs: 64\n", "    max_num_seqs: 64\n    distributed_executor_backend: ray\n")


def findings_of(text: str) -> list[Finding]:
    return model_of(parse_document(text.encode(), "m.yaml"))[1]


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} must appear once in the example"
    return GOOD.replace(old, new)


def only(text: str) -> Finding:
    findings = findings_of(text)
    assert len(findings) == 1, [finding.sentence() for finding in findings]
    return findings[0]


def test_the_example_has_no_findings() -> None:
    assert findings_of(GOOD) == []


BAD = {
    "min_above_max": ("min_replicas: 1", "min_replicas: 5", "max_replicas", "min_replicas <= initial_replicas"),
    "initial_above_max": ("initial_replicas: 1", "initial_replicas: 9", "initial_replicas", "<= max_replicas"),
    "max_zero": ("max_replicas: 4", "max_replicas: 0", "max_replicas", "must be at least 1"),
    "target_not_below_limit": (
        "target_ongoing_requests: 24",
        "target_ongoing_requests: 64",
        "target_ongoing_requests",
        "must be below max_ongoing_requests, 64",
    ),
    "target_zero": (
        "target_ongoing_requests: 24",
        "target_ongoing_requests: 0",
        "target_ongoing_requests",
        "must be above 0",
    ),
    "no_boolean_count": ("max_replicas: 4", "max_replicas: yes", "max_replicas", "found true; a number is expected"),
    "infinite": ("look_back_period_s: 30", "look_back_period_s: .inf", "look_back_period_s", "finite"),
    "window_not_above_interval": (
        "look_back_period_s: 30",
        "look_back_period_s: 1",
        "look_back_period_s",
        "must be longer than metrics_interval_s",
    ),
    "fractional_gpu": (
        "num_gpus_per_worker: 1",
        "num_gpus_per_worker: 0.3",
        "num_gpus_per_worker",
        "found 0.3; allowed parts of a GPU are 0.5, 0.25, 0.125",
    ),
    "two_gpus": (
        "num_gpus_per_worker: 1",
        "num_gpus_per_worker: 2",
        "num_gpus_per_worker",
        "change num_workers instead",
    ),
    "no_gpu_on_a_gpu": (
        "num_gpus_per_worker: 1",
        "num_gpus_per_worker: 0",
        "num_gpus_per_worker",
        "goes with accelerator_type:CPU only",
    ),
    "unknown_key": ("num_cpus_per_worker", "num_cpu_per_worker", "num_cpu_per_worker", "did you mean num_cpus_per_"),
    "unknown_section": (
        "scaling_config:\n  num_w",
        "scalling_config:\n  num_w",
        "scalling_config",
        "did you mean scaling_config?",
    ),
    "id_with_dashes": ("org/name", "org/na--me", "model_id", "without `--`"),
    "id_with_space": ("org/name", "org/na me", "model_id", "allowed is"),
    "pack_with_ray_workers": (
        GOOD[GOOD.index("    max_num_seqs") :],
        GOOD[GOOD.index("    max_num_seqs") :]
        .replace(*RAY)
        .replace("num_workers: 1", "num_workers: 2")
        .replace("STRICT_PACK", "PACK"),
        "placement_strategy",
        "write STRICT_PACK",
    ),
    "unknown_strategy": ("STRICT_PACK", "STRICT", "placement_strategy", "allowed are 'PACK'"),
    "empty_stop": ('["</s>"]', '["</s>", ""]', "stopping_sequences[1]", "is empty"),
    "bare_stop": ('["</s>"]', '"</s>"', "stopping_sequences", "a list is expected"),
    "mapping_as_stop": (
        '["</s>"]',
        "[{a: 1}]",
        "stopping_sequences[0]",
        "found a mapping of 1; text is expected; put it in quotes or a whole number is expected or a list is expected",
    ),
    "negative_stop": ('["</s>"]', "[-2]", "stopping_sequences[0]", "cannot be negative"),
    "replica_with_gpu": (
        "ray_actor_options:",
        "ray_actor_options:\n    num_gpus: 1",
        "num_gpus",
        "the workers have the GPUs",
    ),
    "no_instruction": ("<user>{instruction}", "<user>", "prompt_format.user", "has no {instruction}"),
    "unknown_placeholder": ("<user>{", "<user>{history}{", "prompt_format.user", "placeholder {history}"),
    "system_without_flag": ("<user>{", "<user>{system}{", "prompt_format.user", "needs system_in_user: true"),
    "flag_without_system": (
        "      system:",
        "      system_in_user: true\n      system:",
        "prompt_format.user",
        "has no {system}",
    ),
    "open_brace": ("<bot>{instruction}", "<bot>{instruction", "prompt_format.assistant", "is not a format string"),
    "attribute": ("<sys>{instruction}", "<sys>{instruction.x}", "prompt_format.system", "placeholder"),
    "conversion": ("<sys>{instruction}", "<sys>{instruction!r}", "prompt_format.system", "alone"),
    "prompt_key_missing": ('      trailing_assistant: "<bot>"\n', "", "trailing_assistant", "is missing"),
    "length_zero": ("max_total_tokens: 2048", "max_total_tokens: 0", "max_total_tokens", "must be at least 1"),
    "bucket_as_model": (
        "model_id: org/name",
        "model_id: org/name\n  hf_model_id: s3://b/p",
        "hf_model_id",
        "belongs in s3_mirror_config",
    ),
}


@pytest.mark.parametrize(("old", "new", "key", "message"), BAD.values(), ids=BAD.keys())
def test_a_broken_rule_is_found_at_its_key(old: str, new: str, key: str, message: str) -> None:
    text = changed(old, new)
    at_key = [f for f in findings_of(text) if f.severity is Severity.ERROR and f.path.endswith(key)]
    errors = [f for f in at_key if message in f.message]
    assert len(errors) == 1, [finding.sentence() for finding in findings_of(text)]
    name = key.rsplit(".", maxsplit=1)[-1].split("[", maxsplit=1)[0]
    line = text.splitlines()[errors[0].line - 1]
    missing = "is missing" in errors[0].message
    assert missing or name in line, f"line {errors[0].line} is {line!r}, which does not contain {name}"


@pytest.mark.parametrize(
    ("stops", "refused"), [("[2, [3]]", ""), ("[2, [1, 2]]", "[1, 2]"), ("['a']", "'a'"), ("[[a]]", "['a']")]
)
@pytest.mark.parametrize("key", ["stopping_sequences", "generate_kwargs"])
def test_without_a_tokenizer_only_single_token_ids_can_stop(stops: str, refused: str, key: str) -> None:
    """Otherwise the replica would need a missing tokenizer for the text of [1, 2], and never start."""
    value = stops if key == "stopping_sequences" else f"{{stop: {stops}}}"
    text = changed("max_num_seqs: 64", "skip_tokenizer_init: true").replace(
        'stopping_sequences: ["</s>"]', f"{key}: {value}"
    )
    errors = [f for f in findings_of(text) if f.path.endswith("skip_tokenizer_init")]
    assert [refused in f.message for f in errors] == ([True] if refused else []), [f.message for f in errors]


@pytest.mark.parametrize("amount", ["1", "0.01001", "0.5", "0.0005", "0"])
def test_the_steering_fraction_is_one_thousandth(amount: str) -> None:
    """A value of 1 with two workers on a node stays pending forever (ray-llm#143)."""
    text = GOOD[: GOOD.rindex("0.001")] + amount + "\n"
    errors = [f for f in findings_of(text) if f.severity is Severity.ERROR]
    assert errors and all(f.path == "scaling_config.resources_per_worker.accelerator_type:L4" for f in errors)
    assert "0.001" in errors[0].message or amount == "0"


def test_an_unknown_accelerator_is_refused_with_the_known_ones() -> None:
    errors = findings_of(GOOD.replace("accelerator_type:L4", "accelerator_type:quantum"))
    assert len([f for f in errors if "T4" in f.message and "A100-80G" in f.message]) == 2


def test_a_similar_accelerator_is_suggested() -> None:
    errors = findings_of(GOOD.replace("accelerator_type:L4", "accelerator_type:A100-80"))
    assert errors[0].message == "did you mean accelerator_type:A100-80G?"


def test_no_accelerator_is_refused_with_the_line_to_add() -> None:
    finding = only(GOOD.replace("accelerator_type:L4: 0.001", "other: 1"))
    assert "accelerator_type:L4: 0.001" in finding.message


def test_two_accelerators_are_refused() -> None:
    text = GOOD[: GOOD.rindex("accelerator_type:L4")] + "accelerator_type:T4: 0.001\n"
    assert "L4, T4; a model runs on one" in only(text).message


@pytest.mark.parametrize("key", ["upscale_delay_s: 30", "downscale_delay_s: 300"])
def test_a_delay_shorter_than_the_window_is_a_warning(key: str) -> None:
    """Otherwise replicas come and go under constant load (ray#26455)."""
    name = key.split(":", maxsplit=1)[0]
    assert not findings_of(changed(key, f"{name}: 5")), "our own policies do not average"
    finding = only(changed(key, f"{name}: 5\n    policy: ray_serve"))
    assert (finding.severity, finding.path.split(".")[-1]) == (Severity.WARNING, name)
    assert "5 s is shorter than look_back_period_s, 30 s" in finding.message


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ("policy: kv_use", "policy", "needs target_kv_use"),
        ("policy: time_to_first_token", "policy", "needs target_ttft_s"),
        ("target_kv_use: 0.5", "target_kv_use", "write policy: kv_use"),
        ("policy: kv_use\n    target_kv_use: 1.5", "target_kv_use", "below 1"),
        ("policy: fastest", "policy", "requests"),
    ],
)
def test_a_policy_and_its_target_belong_together(keys: str, key: str, message: str) -> None:
    finding = only(changed("upscale_delay_s: 30", f"upscale_delay_s: 30\n    {keys}"))
    assert finding.path.split(".")[-1] == key and message in finding.message


def test_a_target_far_from_forty_per_cent_gives_a_hint() -> None:
    finding = only(changed("target_ongoing_requests: 24", "target_ongoing_requests: 60"))
    assert finding.severity is Severity.NOTICE
    assert finding.message == "60 is 94% of max_ongoing_requests, 64; about 40 % is usual: 25.6"


def test_without_autoscaling_the_target_does_not_matter() -> None:
    assert findings_of(changed("max_replicas: 4", "max_replicas: 1").replace("requests: 24", "requests: 900")) == []


@pytest.mark.parametrize(("cloud", "scheme"), [("gcs", "gs"), ("azure", "az")])
def test_two_mirrors_are_refused(cloud: str, scheme: str) -> None:
    mirrors = f"  s3_mirror_config: {{bucket_uri: s3://b/p}}\n  {cloud}_mirror_config: {{bucket_uri: {scheme}://b/p}}\n"
    finding = only(changed("  max_total_tokens: 2048\n", mirrors))
    assert (finding.line, finding.path) == (17, f"engine_config.{cloud}_mirror_config")
    assert finding.message == f"s3_mirror_config and {cloud}_mirror_config exclude each other; keep one of them"


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("https://credentials.internal/aws", False),
        ("http://127.0.0.1:8080/aws", False),
        ("http://localhost/aws", False),
        ("http://credentials.internal/aws", True),
        ("http://localhost:x@credentials.internal/aws", True),
        ("http://localhost.internal/aws", True),
        ("ftp://localhost/aws", True),
    ],
)
def test_credentials_come_encrypted_or_from_this_machine(url: str, refused: bool) -> None:
    mirror = (
        f"  s3_mirror_config: {{bucket_uri: s3://b/p, s3_aws_credentials: {{create_aws_credentials_url: '{url}'}}}}\n"
    )
    found = findings_of(changed("  max_total_tokens: 2048\n", mirror))
    assert [finding.path for finding in found] == (
        ["engine_config.s3_mirror_config.s3_aws_credentials.create_aws_credentials_url"] if refused else []
    )


def test_all_flags_of_the_old_sync_but_one_are_refused() -> None:
    mirror = "  s3_mirror_config: {bucket_uri: s3://b/p, s3_sync_args: [--no-sign-request, --delete]}\n"
    finding = only(changed("  max_total_tokens: 2048\n", mirror))
    assert finding.path == "engine_config.s3_mirror_config.s3_sync_args[1]"


@pytest.mark.parametrize(
    ("runtime_env", "key", "message"),
    [
        ("{pips: [a]}", "pips", "did you mean pip?"),
        ("{working_dir: s3://b/x.zip}", "working_dir", "cannot be set here"),
        ("{env_vars: {A: 1}}", "env_vars.A", "put it in quotes"),
        ("{env_vars: {HF_TOKEN: hf_abc}}", "env_vars.HF_TOKEN", "a secret does not belong in a model file"),
        ("{env_vars: {AWS_SECRET_ACCESS_KEY: abc}}", "env_vars.AWS_SECRET_ACCESS_KEY", "a secret"),
    ],
)
def test_runtime_environments_are_checked(runtime_env: str, key: str, message: str) -> None:
    finding = only(changed("  max_total_tokens: 2048", f"  runtime_env: {runtime_env}"))
    assert finding.path == f"engine_config.runtime_env.{key}"
    assert message in finding.message
    assert "hf_abc" not in finding.sentence(), "a message must not repeat a secret"


def test_a_replica_that_may_land_on_another_node_than_its_ray_worker_is_a_warning() -> None:
    """Tensor-parallel workers spread over nodes were a common fault (ray PR#56980)."""
    text = changed("STRICT_PACK", "PACK").replace(
        "  ray_actor_options:\n    resources:\n      accelerator_type:L4: 0.001\n", ""
    )
    assert findings_of(text) == [], "one bundle is on one node"
    assert only(text.replace(*RAY)).severity is Severity.WARNING


@pytest.mark.parametrize("strategy", ["SPREAD", "STRICT_SPREAD"])
def test_a_strategy_without_effect_is_a_notice(strategy: str) -> None:
    finding = only(changed("STRICT_PACK", strategy).replace("num_workers: 1", "num_workers: 2"))
    assert (finding.path, finding.severity) == ("scaling_config.placement_strategy", Severity.NOTICE)
    assert finding.message.startswith(f"{strategy} has no effect: a replica and its workers are one bundle")


def test_several_workers_need_no_strategy() -> None:
    text = changed("num_workers: 1", "num_workers: 4").replace("  placement_strategy: STRICT_PACK\n", "")
    assert findings_of(text) == []


def piped(old: str = "", new: str = "") -> str:
    text = changed("  placement_strategy: STRICT_PACK\n", "").replace("num_workers: 1", "num_workers: 4")
    text = text.replace("  engine_kwargs:\n    max_num_seqs: 64\n", "  engine_kwargs: {pipeline_parallel_size: 2}\n")
    assert "pipeline_parallel_size" in text and old in text
    return text.replace(old, new) if old else text


def test_a_pipeline_needs_no_strategy_and_names_its_nodes() -> None:
    assert findings_of(piped()) == []


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ("num_workers: 4", "num_workers: 3", "engine_config.engine_kwargs.pipeline_parallel_size", "that 2 divides"),
        (
            "num_workers: 4",
            "num_workers: 4\n  placement_strategy: STRICT_PACK",
            "scaling_config.placement_strategy",
            "each stage of a pipeline is on a node of its own",
        ),
        (
            "size: 2}",
            "size: 2, distributed_executor_backend: ray}",
            "engine_config.engine_kwargs.distributed_executor_backend",
            "vLLM's own processes",
        ),
        (
            "size: 2}",
            "size: 2, distributed_executor_backend: uni}",
            "engine_config.engine_kwargs.distributed_executor_backend",
            "vLLM's own processes",
        ),
        (
            "size: 2}",
            "size: 2, data_parallel_size: 2}",
            "engine_config.engine_kwargs.pipeline_parallel_size",
            "leave out one of both",
        ),
        (
            "size: 2}",
            "size: 2}\n  runtime_env: {env_vars: {VLLM_PP_LAYER_PARTITION: '20,12'}}",
            "engine_config.runtime_env.env_vars.VLLM_PP_LAYER_PARTITION",
            "vLLM's own division",
        ),
        ("size: 2}", "size: 2, cpu_offload_gb: 4}", "engine_config.engine_kwargs.cpu_offload_gb", "one node's memory"),
        (
            "size: 2}",
            "size: 2}\n  lora: [{name: a/b, source: a/b}]",
            "engine_config.lora",
            "has no adapters yet",
        ),
    ],
)
def test_what_a_pipeline_cannot_have_is_refused(old: str, new: str, key: str, message: str) -> None:
    found = [one for one in findings_of(piped(old, new)) if one.severity is Severity.ERROR]
    assert [one.path for one in found] == [key] and message in found[0].message


def ranked(kwargs: str = "data_parallel_size: 4") -> str:
    text = changed("num_workers: 1", "num_workers: 4")
    return text.replace("  engine_kwargs:\n    max_num_seqs: 64\n", f"  engine_kwargs: {{{kwargs}}}\n")


def test_data_parallel_ranks_are_a_replicas_workers() -> None:
    assert findings_of(ranked()) == []
    (fault,) = findings_of(ranked("data_parallel_size: 2"))
    assert fault.path == "engine_config.engine_kwargs.data_parallel_size"
    assert "found 2 with num_workers 4" in fault.message and "write num_workers 2" in fault.message


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ("data_parallel_size: 4", "vLLM's CPU build cannot exchange tokens"),
        ("enable_expert_parallel: true", "with 4 workers vLLM's CPU build ends"),
    ],
)
def test_what_cpus_cannot_do_with_experts_is_refused(kwargs: str, message: str) -> None:
    text = ranked(kwargs).replace("accelerator_type:L4", "accelerator_type:CPU")
    text = text.replace("num_gpus_per_worker: 1", "num_gpus_per_worker: 0")
    assert "num_gpus_per_worker: 0" in text and message in only(text).message
    assert findings_of(ranked("enable_expert_parallel: true")) == []


@pytest.mark.parametrize(
    ("added", "key", "message"),
    [
        ("distributed_executor_backend: ray", "engine_kwargs.distributed_executor_backend", "vLLM's own processes"),
        ("distributed_executor_backend: mp", "engine_kwargs.distributed_executor_backend", "vLLM's own processes"),
        ("kv_offloading_size: 8", "engine_kwargs.kv_offloading_size", "as much of the node's memory"),
        ("enable_elastic_ep: true", "engine_kwargs.enable_elastic_ep", "a fixed port"),
        ("decode_context_parallel_size: 2", "engine_kwargs.decode_context_parallel_size", "nobody to share"),
        ("mm_tensor_ipc: torch_shm", "engine_kwargs.mm_tensor_ipc", "one engine alone"),
        ("enable_lora: true", "engine_kwargs.enable_lora", "no adapters yet"),
        ("}\n  lora: [{name: a/b, source: a/b}]\n  runtime_env: {", "lora", "has no adapters yet"),
    ],
)
def test_what_data_parallel_ranks_cannot_have_is_refused(added: str, key: str, message: str) -> None:
    found = [one for one in findings_of(ranked(f"data_parallel_size: 4, {added}")) if one.severity is Severity.ERROR]
    assert [one.path for one in found] == [f"engine_config.{key}"] and message in found[0].message


@pytest.mark.parametrize("strategy", ["SPREAD", "STRICT_SPREAD"])
def test_a_strategy_has_no_effect_on_stages(strategy: str) -> None:
    finding = only(piped("num_workers: 4", f"num_workers: 4\n  placement_strategy: {strategy}"))
    assert finding.path == "scaling_config.placement_strategy" and finding.severity is Severity.NOTICE
    assert f"{strategy} has no effect: each stage of a pipeline is on a node of its own" in finding.message


@pytest.mark.parametrize(
    ("executor", "scaling", "message"),
    [
        ("external_launcher", "num_workers: 1", "allowed are mp, ray, uni"),
        ("uni", "num_workers: 2", "uni is one process"),
        ("ray", "num_gpus_per_worker: 0", "CPU build does not support Ray"),
    ],
)
def test_an_executor_that_a_replica_cannot_have_is_refused(executor: str, scaling: str, message: str) -> None:
    text = changed(*RAY).replace("backend: ray", f"backend: {executor}")
    key = scaling.partition(":")[0]
    text = text.replace(f"{key}: 1", scaling)
    if key == "num_gpus_per_worker":
        text = text.replace("accelerator_type:L4", "accelerator_type:CPU")
    finding = only(text)
    assert finding.path == "engine_config.engine_kwargs.distributed_executor_backend"
    assert message in finding.message and finding.severity is Severity.ERROR


def test_fixed_and_autoscaled_replicas_exclude_each_other() -> None:
    assert only(changed("  max_ongoing_requests: 64", "  num_replicas: 2\n  max_ongoing_requests: 64")).line == 10


def test_all_faults_come_at_once_in_order() -> None:
    text = (
        GOOD.replace("min_replicas: 1", "min_replicas: -1")
        .replace("max_num_seqs", "max_num_seq")
        .replace("<user>{instruction}", "<user>")
        .replace("num_workers: 1", "num_workers: two")
    )
    findings = findings_of(text)
    assert [f.path.split(".")[-1] for f in findings] == ["min_replicas", "max_num_seq", "user", "num_workers"]
    assert findings == sorted(findings)


def test_a_sentence_says_where_what_was_found_and_the_fix() -> None:
    text = changed("max_num_seqs", "max_num_seq")
    assert only(text).sentence() == (
        "m.yaml:18: engine_config.engine_kwargs.max_num_seq: unknown to vLLM 0.32.0, did you mean max_num_seqs?"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  engine_kwargs:", "  gpu_memory_utilization: 0.9\n  engine_kwargs:", "it belongs in engine_kwargs"),
        ("  num_workers: 1", "  num_workers: 1\n  max_ongoing_requests: 4", "it belongs in deployment_config"),
        ("  num_workers: 1", "  num_workers: 1\n  placement_group_bundles: []", "unknown, "),
        ("  max_ongoing", "  placement_group_bundles: []\n  max_ongoing", "it follows from scaling_config"),
        ("  max_ongoing", "  logging_config: {}\n  max_ongoing", "is an option of Ray Serve that a model file does"),
        ("scaling_config:\n  num_w", "max_total_tokens: 1\nscaling_config:\n  num_w", "it belongs in engine_config"),
    ],
)
def test_a_key_in_the_wrong_place_is_refused_with_its_place(old: str, new: str, message: str) -> None:
    assert message in only(changed(old, new)).message


def test_an_unknown_generation_default_is_refused_with_a_similar_name() -> None:
    """Otherwise the replica would refuse it after the node was bought."""
    finding = only(changed("  generation:\n", "  generation:\n    generate_kwargs: {temprature: 0.4}\n"))
    assert finding.path == "engine_config.generation.generate_kwargs.temprature"
    assert finding.message == "unknown, did you mean temperature?"
    assert finding.line == 20


FALLBACK = "    accelerator_type:L4: 0.001\n  fallback:\n  - accelerator: {}\n    engine_kwargs: {}\n"


@pytest.mark.parametrize(
    ("card", "kwargs", "path", "said"),
    [
        ("L4", "{}", "[0].accelerator", "found L4, which the model asks for first"),
        ("A10", "{}", "[0].accelerator", "found 'A10'; did you mean A10G?"),
        ("A10G", "{max_num_seq: 8}", "[0].engine_kwargs.max_num_seq", "did you mean max_num_seqs?"),
        ("A10G", "{max_num_seqs: many}", "[0].engine_kwargs.max_num_seqs", "a whole number is expected"),
        (
            "A10G",
            "{max_num_batched_tokens: 32}",
            "[0].engine_kwargs.max_num_batched_tokens",
            "at least max_num_seqs, 64",
        ),
        ("A10G", "{cpu_offload_gb: 4}", "[0].engine_kwargs.cpu_offload_gb", "reserved before its card is known"),
        (
            "A10G",
            "{distributed_executor_backend: mp}",
            "[0].engine_kwargs.distributed_executor_backend",
            "cannot be set",
        ),
        ("A10G", "{trust_remote_code: true}", "[0].engine_kwargs.trust_remote_code", "the same on every card"),
        ("A10G", "{}\n  - accelerator: A10G", "[1].accelerator", "found A10G twice"),
    ],
)
def test_arguments_on_another_card_are_checked_like_the_models_own(
    card: str, kwargs: str, path: str, said: str
) -> None:
    """Here the own max_num_seqs, 64, counts where the fallback does not say another."""
    head, _, _ = GOOD.rpartition("    accelerator_type:L4: 0.001\n")
    (found,) = [one for one in findings_of(head + FALLBACK.format(card, kwargs)) if one.severity is Severity.ERROR]
    assert found.path == f"scaling_config.fallback{path}"
    assert said in found.message


def test_null_takes_an_argument_back_on_another_card() -> None:
    """A quantization that the other card has no kernels for."""
    head, _, _ = GOOD.rpartition("    accelerator_type:L4: 0.001\n")
    text = head + FALLBACK.format("A10G", "{max_num_seqs: null}")
    assert [one for one in findings_of(text) if one.severity is Severity.ERROR] == []
    loaded, _ = model_of(parse_document(text.encode(), "m.yaml"))
    assert loaded is not None
    there = loaded.config.on("A10G")
    assert there.accelerator == "A10G" and there.engine_config.engine_kwargs == {"max_num_seqs": None}
    assert loaded.config.accelerator == "L4", "the file itself stays"
