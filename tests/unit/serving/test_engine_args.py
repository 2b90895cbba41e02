"""A model file's meaning to vLLM and to Ray Serve, as plain data."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from modelfleet.serving import metrics
from modelfleet.serving.config.schema import DeploymentConfig, ModelConfig
from modelfleet.serving.config.serve_options import (
    REPLICA_ENVIRONMENT,
    actor_options,
    deployment_options,
    placement_bundles,
)
from modelfleet.serving.engine_args import DEFAULT_ENVIRONMENT, NO_MEDIA, engine_arguments, lora_rank
from modelfleet.serving.errors import EngineError
from modelfleet.serving.replica import check_experts
from modelfleet.serving.sampling import body_defaults, compile_stops

GPU = {"accelerator_type:L4": 0.001}
CPU = {"accelerator_type:CPU": 0.001}


def model(engine: dict[str, Any] | None = None, actor: dict[str, Any] | None = None, **scaling: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "deployment_config": {"ray_actor_options": actor or {}},
            "engine_config": {"model_id": "org/name", **(engine or {})},
            "scaling_config": {"num_workers": 1, "resources_per_worker": GPU, **scaling},
        }
    )


def arguments(engine: dict[str, Any] | None = None, **scaling: Any) -> dict[str, Any]:
    return engine_arguments(model(engine, **scaling), "/weights")


def test_the_file_decides_name_length_and_parallelism() -> None:
    found = arguments({"max_total_tokens": 4096, "engine_kwargs": {"max_num_seqs": 64}}, num_workers=4)
    wanted = {
        "model": "/weights",
        "served_model_name": ["org/name"],
        "max_model_len": 4096,
        "tensor_parallel_size": 4,
        "max_num_seqs": 64,
    }
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize("said", [{}, {"allowed_media_domains": []}, {"allowed_media_domains": None}], ids=str)
def test_no_media_is_fetched_unless_the_file_names_hosts(said: dict[str, Any]) -> None:
    """A request with an image's address made the replica read from Ray's dashboard and the cluster's services."""
    assert arguments({"engine_kwargs": said})["allowed_media_domains"] == [NO_MEDIA]
    named = {"allowed_media_domains": ["images.example.org"]}
    assert arguments({"engine_kwargs": named})["allowed_media_domains"] == ["images.example.org"]
    assert DEFAULT_ENVIRONMENT["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_sampling_and_length_are_the_checkpoints_unless_the_file_speaks_rayllm_or_says_otherwise() -> None:
    """SmolLM2 talked nonsense at temperature 1.0, which its makers never meant."""
    assert (arguments()["generation_config"], arguments()["max_model_len"]) == ("auto", -1)
    templates = {
        "system": "{instruction}",
        "user": "{instruction}",
        "assistant": "{instruction}",
        "trailing_assistant": "",
    }
    rayllm = {"generation": {"prompt_format": templates}}
    assert (arguments(rayllm)["generation_config"], arguments(rayllm)["max_model_len"]) == ("vllm", 2048)
    assert arguments({**rayllm, "engine_kwargs": {"generation_config": "auto"}})["generation_config"] == "auto"
    assert arguments({**rayllm, "max_total_tokens": 512})["max_model_len"] == 512
    assert arguments({"engine_kwargs": {"generation_config": "vllm"}})["generation_config"] == "vllm"


def test_generate_kwargs_are_defaults_and_max_tokens_is_not_a_cap() -> None:
    generation = {"generate_kwargs": {"temperature": 0.4, "top_p": 0.9, "max_tokens": 99, "do_sample": True}}
    assert arguments({"generation": generation})["override_generation_config"] == {"temperature": 0.4, "top_p": 0.9}


def test_defaults_that_only_a_request_can_carry_go_into_its_body() -> None:
    given = {"seed": 3, "max_new_tokens": 50, "temperature": 0.1}
    assert body_defaults(given) == ({"seed": 3}, {"seed": 3, "max_tokens": 50})
    assert body_defaults({"temperature": 0.1}) == ({}, {})


def test_an_unknown_generate_kwarg_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(EngineError, match=r"generate_kwargs: found 'temprature'; allowed are .*temperature"):
        arguments({"generation": {"generate_kwargs": {"temprature": 1}}})


def test_one_gpu_runs_in_the_engines_process_and_several_are_its_children() -> None:
    """In a placement group vLLM would take Ray for several workers, each in a process with imports of its own."""
    assert "distributed_executor_backend" not in arguments(), "vLLM's own choice for one worker is uni"
    assert arguments(num_workers=4)["distributed_executor_backend"] == "mp"


def test_data_parallel_ranks_are_engines_with_one_gpu_each() -> None:
    found = arguments({"engine_kwargs": {"data_parallel_size": 4}}, num_workers=4)
    assert (found["data_parallel_size"], found["tensor_parallel_size"]) == (4, 1)
    assert found["distributed_executor_backend"] == "uni", "in a placement group vLLM would take Ray"


@pytest.mark.parametrize(
    ("kwargs", "workers", "refused"),
    [
        ({"data_parallel_size": 2}, 2, True),
        ({"enable_expert_parallel": True}, 2, True),
        ({"enable_expert_parallel": True}, 1, False),
        ({}, 2, False),
    ],
    ids=str,
)
def test_on_a_pretended_card_experts_are_not_shared(kwargs: dict[str, Any], workers: int, refused: bool) -> None:
    with pytest.raises(EngineError, match="cannot share experts") if refused else nullcontext():
        check_experts(model({"engine_kwargs": kwargs}, num_workers=workers))


def test_a_replica_with_two_engines_follows_the_mean_of_their_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("vllm_kv_cache_usage_perc", "vllm_time_to_first_token_seconds_count", "vllm_num_requests_running")
    samples = [
        (name, {"engine": rank}, value)
        for rank, values in (("0", (0.2, 3.0, 1.0)), ("1", (0.6, 4.0, 1.0)))
        for name, value in zip(names, values, strict=True)
    ]
    monkeypatch.setattr(metrics, "vllm_samples", lambda: iter(samples))
    assert metrics.followed() == {"kv_use": 0.4, "first_tokens": 7.0, "first_token_s": 0.0}
    samples.clear()
    assert metrics.followed() == {"kv_use": 0.0, "first_tokens": 0.0, "first_token_s": 0.0}


def test_the_file_can_ask_for_rays_executor() -> None:
    ray = {"engine_kwargs": {"distributed_executor_backend": "ray"}}
    assert arguments(ray)["distributed_executor_backend"] == "ray"
    assert arguments(ray, num_workers=4)["distributed_executor_backend"] == "ray"


def test_no_progress_bar_is_drawn_into_a_log_unless_the_file_wants_one() -> None:
    assert arguments()["use_tqdm_on_load"] is False
    assert arguments({"engine_kwargs": {"use_tqdm_on_load": True}})["use_tqdm_on_load"] is True


def test_cpu_workers_are_child_processes_and_run_eagerly() -> None:
    one = arguments(num_gpus_per_worker=0, resources_per_worker=CPU)
    assert one["enforce_eager"] is True, "the CPU build's compiled kernels answered wrongly"
    assert "distributed_executor_backend" not in one
    two = arguments(num_gpus_per_worker=0, resources_per_worker=CPU, num_workers=2)
    assert two["distributed_executor_backend"] == "mp"


def test_a_replica_is_one_bundle_with_all_that_it_and_its_workers_ask() -> None:
    one = model(actor={"resources": GPU, "memory": 4096}, num_workers=2, num_cpus_per_worker=8)
    assert placement_bundles(one) == [{"CPU": 17.0, "GPU": 2.0, "memory": 4096.0, "accelerator_type:L4": 0.003}]


def test_a_replica_with_gpus_takes_its_bundle_but_for_the_workers_cpus() -> None:
    """Ray would set OMP_NUM_THREADS to the sum, and vLLM then keeps as many threads spinning while it serves."""
    options = actor_options(model(actor={"num_cpus": 2}, num_workers=4, num_cpus_per_worker=8))
    del options["runtime_env"]
    assert options == {"num_cpus": 2.0, "num_gpus": 4.0, "resources": {"accelerator_type:L4": 0.004}}


def test_with_rays_executor_a_replica_has_its_own_bundle_before_its_workers() -> None:
    ray = {"engine_kwargs": {"distributed_executor_backend": "ray"}}
    one = model(ray, actor={"resources": GPU}, num_workers=2, num_cpus_per_worker=8)
    worker = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 0.001}
    assert placement_bundles(one) == [{"CPU": 1.0, "accelerator_type:L4": 0.001}, worker, worker]
    options = actor_options(one)
    del options["runtime_env"]
    assert options == {"num_cpus": 1.0, "num_gpus": 0.0, "resources": {"accelerator_type:L4": 0.001}}


def test_a_replica_without_gpus_takes_one_whole_bundle() -> None:
    one = model(actor={"num_cpus": 0}, num_workers=2, num_gpus_per_worker=0, resources_per_worker=CPU)
    assert placement_bundles(one) == [{"CPU": 2.0, "accelerator_type:CPU": 0.002}]
    assert actor_options(one)["num_cpus"] == 2.0


def test_both_runtime_environments_reach_the_replica_and_its_own_wins() -> None:
    one = model(
        {"runtime_env": {"pip": ["a"], "env_vars": {"A": "1", "B": "1"}}},
        actor={"runtime_env": {"env_vars": {"B": "2"}}},
    )
    found = actor_options(one)["runtime_env"]
    assert found == {"pip": ["a"], "env_vars": {**REPLICA_ENVIRONMENT, "A": "1", "B": "2"}}


@pytest.mark.parametrize(
    ("asked", "limit"), [({}, 128), ({"max_queued_requests": 5}, 5), ({"max_queued_requests": -1}, -1)]
)
def test_the_queue_is_bounded_unless_the_file_says_otherwise(asked: dict[str, int], limit: int) -> None:
    """Serve's default lets any number of requests wait, each with its body and connection."""
    config = DeploymentConfig(max_ongoing_requests=64, **asked)
    options = deployment_options(model().model_copy(update={"deployment_config": config}))
    assert options["max_queued_requests"] == limit
    assert options["backpressure_config"]["retry_after_s"] > 0


def test_the_adapters_rank_sets_vllms_limit(tmp_path: Path) -> None:
    for rank, expected in ((4, 8), (16, 16), (17, 32)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
        assert lora_rank(tmp_path) == expected
    found = engine_arguments(model(), "/weights", {"org/other": tmp_path})
    assert (found["enable_lora"], found["max_lora_rank"]) == (True, 32)
    assert found["lora_modules"] == [{"name": "org/other", "path": str(tmp_path)}]


def test_stops_become_strings_and_token_ids() -> None:
    stops = compile_stops(
        ["###", 7, [5, 6], ["a", 5], "<|end|>", "", "###"],
        "more",
        special_tokens={"<|end|>": 2},
        decode=lambda ids: "".join(f"<{number}>" for number in ids),
    )
    assert stops.strings == ("###", "<5><6>", "a<5>", "more")
    assert stops.token_ids == (7, 2)
