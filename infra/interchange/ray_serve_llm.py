"""`ray.serve.llm`: LLMConfigs, alone, in `build_openai_app`'s arguments, or in a RayService (Ray 2.60)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modelfleet.infra.interchange.containers import environment_of
from modelfleet.infra.interchange.tree import items, mapping, text, walk
from modelfleet.infra.interchange.workload import Note, Workload, readable, unknowns
from modelfleet.serving.config.document import Document

_HANDLED = frozenset(
    {
        "model_loading_config",
        "engine_kwargs",
        "deployment_config",
        "accelerator_type",
        "runtime_env",
        "llm_engine",
        "lora_config",
        "placement_group_config",
    }
)


def read_ray_serve(document: Document) -> Iterator[Workload]:
    """A workload for each LLMConfig of a document."""
    for path, value in walk(document.data):
        config = isinstance(value, dict) and isinstance(value.get("model_loading_config"), dict)
        if config and text(value, "llm_engine").lower() in ("", "vllm"):
            yield workload_of_config(value, f"{document.file}:{document.line(path)}")


def paths_in(document: Document) -> Iterator[str]:
    """Other files that hold LLMConfigs: `llm_configs: [./config.yaml]`."""
    for path, value in walk(document.data):
        if path and path[-1] == "llm_configs":
            yield from (str(one) for one in (value if isinstance(value, list) else []) if isinstance(one, str))


def workload_of_config(data: dict[str, Any], where: str) -> Workload:
    """One LLMConfig, as a mapping of its arguments."""
    notes = list(_notes(data))
    loading = mapping(data, "model_loading_config")
    source = loading.get("model_source")
    bucket = source.get("bucket_uri") if isinstance(source, dict) else None
    arguments = _said(data, notes, "engine_kwargs")
    unsaid = frozenset(mapping(data, "engine_kwargs").keys() - arguments.keys())
    name = text(loading, "model_id")
    arguments["model"] = str(bucket or (source if isinstance(source, str) else "") or name)
    arguments["served_model_name"] = [name] if name else []
    if tokenizer := text(loading, "tokenizer_source"):
        arguments["tokenizer"] = tokenizer
    scaling = _said(data, notes, "deployment_config", "autoscaling_config")
    deployment = _said(data, notes, "deployment_config")
    deployment.pop("autoscaling_config", None)
    if not isinstance(deployment.get("num_replicas"), int):
        deployment.pop("num_replicas", None)
    accelerator = text(data, "accelerator_type")
    return Workload(
        f"{where} (LLMConfig {readable(name)})",
        arguments,
        unsaid,
        tuple(notes),
        environment=environment_of(mapping(data, "runtime_env").get("env_vars")),
        hardware=(accelerator,) if accelerator else (),
        # Ray Serve's own default, where the file scales at all.
        autoscaling={"target_ongoing_requests": 2, **scaling} if scaling else {},
        deployment=deployment,
    )


def _said(data: dict[str, Any], notes: list[Note], *path: str) -> dict[str, Any]:
    """The mapping at a path, without values that come from outside; a note for each of those."""
    found = mapping(data, *path)
    for key, value in found.items():
        if key != "autoscaling_config" and (lost := list(unknowns(value))):
            notes.append(Note(f"{path[-1]}.{key}", f"its value is not in the file: {', '.join(lost)}"))
    return {key: value for key, value in found.items() if not list(unknowns(value))}


def _notes(data: dict[str, Any]) -> Iterator[Note]:
    bundles = [one for one in items(data, "placement_group_config", "bundles") if isinstance(one, dict)]
    gpus = sum(int(one.get("GPU", 0)) for one in bundles if isinstance(one.get("GPU", 0), int | float))
    workers = mapping(data, "engine_kwargs").get("tensor_parallel_size", 1)
    if bundles and isinstance(workers, int) and gpus not in (0, workers):
        yield Note(f"placement_group_config with {gpus} GPUs", f"a replica has {workers}, as tensor_parallel_size says")
    if mapping(data, "deployment_config").get("num_replicas") == "auto":
        yield Note("num_replicas: auto", "write autoscaling_config: Ray's `auto` is 1 to 100 replicas")
    if lora := mapping(data, "lora_config"):
        yield Note(
            f"lora_config {text(lora, 'dynamic_lora_loading_path')}".strip(),
            "name its adapters in engine_config.lora, one by one or as s3://bucket/prefix/*",
        )
    for key in mapping(data, "runtime_env").keys() - {"env_vars"}:
        yield Note(f"runtime_env.{key}", "packages and code belong in the image")
    for key in data.keys() - _HANDLED:
        yield Note(str(key), "an option of Ray Serve LLM that a model file does not take")
