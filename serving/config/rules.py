"""Rules over more than one key, run on the normalised data so that one wrong key does not hide the others.

An error can never work, a warning works badly, a hint is advice. The schema has types and bounds of single keys,
`engine_rules.py` the engine arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from modelfleet.serving.config.accelerators import (
    CPU,
    RESOURCE_PREFIX,
    STEERING_FRACTION,
    accelerator_of,
    accelerators,
    known_gpus,
)
from modelfleet.serving.config.catalogs import architecture_fault, architecture_of_id, serve_options
from modelfleet.serving.config.document import Document, KeyPath
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.prompt_rules import TEMPLATES, template_faults
from modelfleet.serving.config.validation import near, nearest, shown

Fault = tuple[KeyPath, str, Severity]

ACTOR: KeyPath = ("deployment_config", "ray_actor_options")
AUTOSCALING: KeyPath = ("deployment_config", "autoscaling_config")
ENGINE_KWARGS: KeyPath = ("engine_config", "engine_kwargs")
WORKERS: KeyPath = ("scaling_config", "resources_per_worker")

#: Names of variables whose values nobody should see.
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_LOOKS_LIKE_ACCELERATOR = re.compile(r"^accel\w*[:_ ]", re.IGNORECASE)


def rule_findings(document: Document, data: dict[str, Any]) -> Iterator[Finding]:
    """Every broken rule, warning and hint of a model file's (normalised) data."""
    for rule in _RULES:
        for path, message, severity in rule(data):
            yield document.finding(path, message, severity)


def _section(data: Any, *path: str | int) -> dict[str, Any]:
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _number(section: dict[str, Any], key: str, default: float | None) -> float | None:
    """The number at `key`, the default where it is left out, None where it is not a number (the schema says so)."""
    value = section.get(key)
    if value is None:
        return default
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _gpus(data: Any) -> float | None:
    return _number(_section(data, "scaling_config"), "num_gpus_per_worker", 1)


def _stages(data: Any) -> float:
    """Nodes of one replica; 1 where they are no number."""
    return _number(_section(data, *ENGINE_KWARGS), "pipeline_parallel_size", None) or 1


def _data_ranks(data: Any) -> float:
    """Data parallel ranks of one replica; 1 where they are no number."""
    return _number(_section(data, *ENGINE_KWARGS), "data_parallel_size", None) or 1


def _error(path: KeyPath, message: str) -> Fault:
    return path, message, Severity.ERROR


def _accelerator(data: Any) -> Iterator[Fault]:
    """Exactly one accelerator is named, and it goes with the number of GPUs."""
    if "scaling_config" not in data:
        return
    named = {
        name: (*path, resource)
        for path in ((*ACTOR, "resources"), WORKERS)
        for resource in _section(data, *path)
        if (name := accelerator_of(resource)) is not None
    }
    asked, allowed = _gpus(data), ", ".join(known_gpus())
    if len(named) > 1:
        path = named[max(named, key=list(named).index)]
        yield _error(path, f"found resources for {', '.join(sorted(named))}; a model runs on one accelerator")
    elif not named and asked and not any(_LOOKS_LIKE_ACCELERATOR.match(name) for name in _section(data, *WORKERS)):
        yield _error(
            WORKERS,
            f"no accelerator is named; add `{RESOURCE_PREFIX}L4: {STEERING_FRACTION}` (allowed are {allowed})",
        )
    elif CPU in named and asked:
        yield _error(named[CPU], f"found {CPU} with GPUs; write num_gpus_per_worker: 0, or one of {allowed}")
    elif named and CPU not in named and asked == 0:
        path = ("scaling_config", "num_gpus_per_worker")
        yield _error(path, f"found 0 with {', '.join(named)}; 0 goes with {RESOURCE_PREFIX}{CPU} only, write 1")


def _resources(data: Any) -> Iterator[Fault]:
    """Names of accelerators are known, and their value is the steering fraction."""
    for path in ((*ACTOR, "resources"), WORKERS):
        for name, value in _section(data, *path).items():
            accelerator = accelerator_of(name)
            if accelerator is not None and value != STEERING_FRACTION:
                yield _error(
                    (*path, name),
                    f"found {shown(value)}; must be {STEERING_FRACTION}: it only steers to the right nodes, "
                    "and the GPUs limit how many fit",
                )
            elif accelerator is None and _LOOKS_LIKE_ACCELERATOR.match(name):
                close = nearest(re.split(r"[:_ ]+", name, maxsplit=2)[-1], accelerators())
                allowed = ", ".join(f"{RESOURCE_PREFIX}{one}" for one in accelerators())
                hint = f"did you mean {RESOURCE_PREFIX}{close}?" if close else f"allowed are {allowed}"
                yield _error((*path, name), hint if close else f"unknown accelerator; {hint}")


def _placement(data: Any) -> Iterator[Fault]:
    """A replica is one bundle on one node, whatever the strategy; Ray's executor has a bundle for each worker.

    Those share a node. So do a replica and its only worker, unless both name the accelerator.
    """
    scaling = _section(data, "scaling_config")
    workers, gpus = _number(scaling, "num_workers", None), _gpus(data)
    strategy = scaling.get("placement_strategy", "PACK")
    path = ("scaling_config", "placement_strategy")
    if _stages(data) > 1:
        return  # `_pipeline` says what is wrong with it there
    if not gpus or _section(data, *ENGINE_KWARGS).get("distributed_executor_backend") != "ray":
        if strategy in ("SPREAD", "STRICT_SPREAD"):
            message = f"{strategy} has no effect: a replica and its workers are one bundle, on one node; leave it out"
            yield path, message, Severity.NOTICE
        return
    if workers is not None and workers > 1 and strategy != "STRICT_PACK":
        yield _error(
            path,
            f"found {shown(strategy)} with {shown(scaling['num_workers'])} workers; tensor parallel workers must share "
            "a node: write STRICT_PACK",
        )
    replica = {accelerator_of(name) for name in _section(data, *ACTOR, "resources")} - {None}
    worker = {accelerator_of(name) for name in _section(data, *WORKERS)} - {None}
    if worker and not replica and strategy != "STRICT_PACK":
        message = "the replica itself may land on another node; write STRICT_PACK, or name the accelerator in "
        yield path, f"{message}deployment_config.ray_actor_options.resources too", Severity.WARNING


def _executor(data: Any) -> Iterator[Fault]:
    """Which of vLLM's executors a replica can have (vLLM 0.32 `vllm/config/parallel.py`, `vllm/v1/executor`)."""
    path = (*ENGINE_KWARGS, "distributed_executor_backend")
    asked = _section(data, *ENGINE_KWARGS).get("distributed_executor_backend")
    workers = _number(_section(data, "scaling_config"), "num_workers", None)
    if _stages(data) > 1 or _data_ranks(data) > 1:
        return  # `_pipeline` and `_data_parallel` say which they allow
    if asked == "external_launcher":
        yield _error(
            path, f"found {shown(asked)}, for which somebody else starts the workers; allowed are mp, ray, uni"
        )
    elif asked == "ray" and _gpus(data) == 0:
        yield _error(path, "found 'ray' without GPUs; vLLM's CPU build does not support Ray: leave it out")
    elif asked == "uni" and workers is not None and workers > 1:
        message = f"found 'uni' with {shown(workers)} workers, but uni is one process; leave it out, or write mp"
        yield _error(path, message)


#: Which layers a stage has (vLLM 0.32 `vllm/distributed/utils.py`, `get_pp_indices`).
DIVISION = "VLLM_PP_LAYER_PARTITION"

_ON_ONE_NODE = {
    "speculative_config": "what drafts runs in the last stage alone",
    "kv_offloading_size": "it is one node's memory",
    "cpu_offload_gb": "it is one node's memory",
}
"""Engine arguments that a replica over several nodes does not have yet, and why."""


def _pipeline(data: Any) -> Iterator[Fault]:
    """A pipeline: `num_workers` workers in equal stages, each on a node of its own, in vLLM's own processes."""
    kwargs, scaling = _section(data, *ENGINE_KWARGS), _section(data, "scaling_config")
    stages, workers = _stages(data), _number(scaling, "num_workers", None)
    if stages <= 1:
        return
    path = (*ENGINE_KWARGS, "pipeline_parallel_size")
    if workers is not None and workers % stages:
        yield _error(
            path,
            f"found {stages:g} with num_workers {workers:g}; num_workers are all workers of a replica, and each of its "
            f"stages has as many: write a num_workers that {stages:g} divides",
        )
    strategy, place = scaling.get("placement_strategy", "PACK"), ("scaling_config", "placement_strategy")
    if strategy == "STRICT_PACK":
        yield _error(
            place, f"found {shown(strategy)}, but each stage of a pipeline is on a node of its own: leave it out"
        )
    elif strategy in ("SPREAD", "STRICT_SPREAD"):
        message = f"{strategy} has no effect: each stage of a pipeline is on a node of its own anyway; leave it out"
        yield place, message, Severity.NOTICE
    if (asked := kwargs.get("distributed_executor_backend")) not in (None, "mp"):
        message = f"found {shown(asked)}; the stages of a pipeline are vLLM's own processes (mp): leave it out"
        yield _error((*ENGINE_KWARGS, "distributed_executor_backend"), message)
    for name in sorted(_ON_ONE_NODE.keys() & {key for key, value in kwargs.items() if value}):
        message = f"a replica over several nodes does not have it, because {_ON_ONE_NODE[name]}: leave it out"
        yield _error((*ENGINE_KWARGS, name), message)
    for section in (("engine_config", "runtime_env"), (*ACTOR, "runtime_env")):
        if DIVISION in _section(data, *section, "env_vars"):
            yield _error((*section, "env_vars", DIVISION), "the plan counts vLLM's own division: leave it out")
    if _section(data, "engine_config").get("lora"):
        message = "a replica over several nodes has no adapters yet: leave them out, or serve it on one node"
        yield _error(("engine_config", "lora"), message)
    if scaling.get("fallback"):
        message = "all stages of a replica have the same card, so it falls back on none: leave it out"
        yield _error(("scaling_config", "fallback"), message)
    if _gpus(data) and not {accelerator_of(name) for name in _section(data, *WORKERS)} - {None}:
        message = "names no accelerator, so the further stages could land on any node; add `accelerator_type:…: 0.001`"
        yield _error(WORKERS, message)


_NOT_WITH_RANKS = {
    "kv_offloading_size": "each data parallel rank would take as much of the node's memory",
    "enable_elastic_ep": "it opens a fixed port of the node, and nothing here changes a replica's ranks",
    "decode_context_parallel_size": "a data parallel rank is one GPU, which has nobody to share its cache with",
    "mm_tensor_ipc": "vLLM shares tensors with one engine alone",
    "enable_lora": "a replica with data parallel ranks has no adapters yet",
}
"""Engine arguments that data parallel ranks cannot have, and why (vLLM 0.32 `config/parallel.py`, `model.py`)."""

_HARMLESS = {"decode_context_parallel_size": 1, "mm_tensor_ipc": "direct_rpc"}
"""vLLM's defaults of those that have one."""


def _data_parallel(data: Any) -> Iterator[Fault]:
    """Data parallel ranks: one worker each, all on the replica's node, in vLLM's own processes.

    On CPUs the first request would end the engine (vLLM 0.32 `cpu_communicator.py` has no `all_gatherv`).
    """
    kwargs, scaling = _section(data, *ENGINE_KWARGS), _section(data, "scaling_config")
    ranks, workers = _data_ranks(data), _number(scaling, "num_workers", None)
    if ranks <= 1:
        return
    if _stages(data) > 1:
        message = "ranks are on one node, and the stages of a pipeline on several: leave out one of both"
        yield _error((*ENGINE_KWARGS, "pipeline_parallel_size"), message)
    elif workers is not None and workers != ranks:
        yield _error(
            (*ENGINE_KWARGS, "data_parallel_size"),
            f"found {ranks:.0f} with num_workers {workers:.0f}; each rank is one worker, with attention and a cache of "
            f"its own: write num_workers {ranks:.0f}; for ranks of several GPUs raise num_replicas or max_replicas",
        )
    if (asked := kwargs.get("distributed_executor_backend")) not in (None, "uni"):
        message = f"found {shown(asked)}; data parallel ranks are vLLM's own processes: leave it out"
        yield _error((*ENGINE_KWARGS, "distributed_executor_backend"), message)
    if _gpus(data) == 0:
        message = "vLLM's CPU build cannot exchange tokens between ranks that share experts: leave it out"
        yield _error((*ENGINE_KWARGS, "data_parallel_size"), message)
    for name, why in _NOT_WITH_RANKS.items():
        if kwargs.get(name) and kwargs[name] != _HARMLESS.get(name):
            yield _error((*ENGINE_KWARGS, name), f"{why}: leave it out")
    if _section(data, "engine_config").get("lora"):
        message = "a replica with data parallel ranks has no adapters yet: leave them out, or leave out the ranks"
        yield _error(("engine_config", "lora"), message)


def _expert_parallel(data: Any) -> Iterator[Fault]:
    """Whole experts need GPUs: the CPU build's kernel reads beyond those that a worker has (vLLM 0.32, a segfault)."""
    workers = _number(_section(data, "scaling_config"), "num_workers", None)
    asked = _section(data, *ENGINE_KWARGS).get("enable_expert_parallel") is True
    if asked and _gpus(data) == 0 and workers is not None and workers > 1:
        message = f"with {workers:g} workers vLLM's CPU build ends at the first request: leave it out"
        yield _error((*ENGINE_KWARGS, "enable_expert_parallel"), message)


def _gpu_parts(data: Any) -> Iterator[Fault]:
    """A part of a GPU is one worker's, in the engine's process, and bounds what vLLM may take of the card."""
    part = _gpus(data)
    if part is None or not 0 < part < 1:
        return
    path: KeyPath = ("scaling_config", "num_gpus_per_worker")
    workers = _number(_section(data, "scaling_config"), "num_workers", None)
    if workers is not None and workers > 1:
        yield _error(
            path, f"found {part:g} with {shown(workers)} workers; a model on several GPUs has whole ones: write 1"
        )
    kwargs = _section(data, *ENGINE_KWARGS)
    if kwargs.get("distributed_executor_backend") == "ray":
        message = "found 'ray' with a part of a GPU; Ray's executor takes whole ones: leave it out"
        yield _error((*ENGINE_KWARGS, "distributed_executor_backend"), message)
    if kwargs.get("kv_cache_memory_bytes") is not None:
        message = f"found with num_gpus_per_worker {part:g}; with it vLLM keeps to no share of the card: leave it out"
        yield _error((*ENGINE_KWARGS, "kv_cache_memory_bytes"), message)
    share = _number(kwargs, "gpu_memory_utilization", None)
    if share is not None and share > part:
        yield _error(
            (*ENGINE_KWARGS, "gpu_memory_utilization"),
            f"found {share:g} with num_gpus_per_worker {part:g}: the replicas on a card would take more than it has; "
            "leave it out, and it follows from the part",
        )
    message = (
        f"{part:g} of a GPU bounds memory, not time: the replicas on a card take turns (CUDA's time slicing), so each "
        "is slower while others work, and the plan's speed is that of a replica alone"
    )
    yield path, message, Severity.NOTICE


def _fallback(data: Any) -> Iterator[Fault]:
    """Each entry is another card than the model's own, and each once."""
    own = {accelerator_of(name) for name in _section(data, *WORKERS)} | {
        accelerator_of(name) for name in _section(data, *ACTOR, "resources")
    }
    entries = _section(data, "scaling_config").get("fallback")
    named: list[Any] = []
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        name = entry.get("accelerator") if isinstance(entry, dict) else None
        path: KeyPath = ("scaling_config", "fallback", index, "accelerator")
        if name is not None and name in own:
            yield _error(path, f"found {name}, which the model asks for first; name another, or leave the entry out")
        elif name is not None and name in named:
            yield _error(path, f"found {name} twice; give its arguments in one entry")
        named.append(name)


def _replica(data: Any) -> Iterator[Fault]:
    """The replica's GPUs are its workers'; one of its own would only lie idle."""
    actor = _section(data, *ACTOR)
    if _number(actor, "num_gpus", 0):
        message = f"found {shown(actor['num_gpus'])}; the workers have the GPUs: leave it out"
        yield _error((*ACTOR, "num_gpus"), message)


def _autoscaling(data: Any) -> Iterator[Fault]:
    scaling = _section(data, *AUTOSCALING)
    if not scaling:
        return
    lowest, most = _number(scaling, "min_replicas", 1), _number(scaling, "max_replicas", 1)
    if lowest is None or most is None or lowest == most:
        return
    yield from _target(data, scaling)
    own = scaling.get("policy", "requests") != "ray_serve"
    window = _number(scaling, "look_back_period_s", 5 if own else 30)
    # Of the other policies each delay is the window of its own decision.
    for key, default in () if own else (("upscale_delay_s", 30), ("downscale_delay_s", 600)):
        delay = _number(scaling, key, default)
        if delay is not None and window is not None and delay < window:
            yield (
                (*AUTOSCALING, key),
                (
                    f"{delay:g} s is shorter than look_back_period_s, {window:g} s: replicas may come and go on the "
                    "same load (ray#26455); the delay should be at least as long"
                ),
                Severity.WARNING,
            )
    interval = _number(scaling, "metrics_interval_s", 1 if own else 10)
    if interval is not None and window is not None and window <= interval:
        message = f"{window:g} s must be longer than metrics_interval_s, {interval:g} s; Ray Serve averages over it"
        yield _error((*AUTOSCALING, "look_back_period_s"), message)


def _target(data: Any, scaling: dict[str, Any]) -> Iterator[Fault]:
    path = (*AUTOSCALING, "target_ongoing_requests")
    target = _number(scaling, "target_ongoing_requests", 1.0)
    limit = _number(_section(data, "deployment_config"), "max_ongoing_requests", 100)
    if target is None or limit is None or limit <= 0:
        return
    if target >= limit:
        yield _error(
            path,
            f"found {target:g}; must be below max_ongoing_requests, {limit:g}, or replicas are full before another "
            f"one starts: about 40 % of it is {0.4 * limit:g}",
        )
    elif not 0.1 <= target / limit <= 0.8:
        message = f"{target:g} is {target / limit:.0%} of max_ongoing_requests, {limit:g}; about 40 % is usual: "
        yield path, f"{message}{0.4 * limit:g}", Severity.NOTICE


def _stops(data: Any) -> Iterator[Fault]:
    path: KeyPath = ("engine_config", "generation", "stopping_sequences")
    sequences = _section(data, "engine_config", "generation").get("stopping_sequences")
    for index, entry in enumerate(sequences if isinstance(sequences, list) else []):
        if entry in ("", []):
            yield _error((*path, index), "is empty, and an empty stop sequence stops at once; leave it out")
        elif any(isinstance(part, int) and part < 0 for part in (entry if isinstance(entry, list) else [entry])):
            yield _error((*path, index), f"found {shown(entry)}; a token id cannot be negative")


def _prompts(data: Any) -> Iterator[Fault]:
    path: KeyPath = ("engine_config", "generation", "prompt_format")
    prompts = _section(data, *path)
    for name in TEMPLATES:
        if isinstance(template := prompts.get(name), str):
            for message in template_faults(name, template, system_in_user=prompts.get("system_in_user") is True):
                yield _error((*path, name), message)


def _runtime_envs(data: Any) -> Iterator[Fault]:
    known = [key for key in serve_options()["runtime_env"] if key not in ("working_dir", "excludes")]
    for path in (("engine_config", "runtime_env"), (*ACTOR, "runtime_env")):
        for key, value in _section(data, *path).items():
            if key in ("working_dir", "excludes"):
                yield _error((*path, key), "cannot be set here: the serving code comes from it")
            elif key not in known:
                yield _error((*path, key), f"unknown to Ray, {near(str(key), known)}")
            elif key == "env_vars":
                yield from _environment((*path, key), value)


def _environment(path: KeyPath, variables: Any) -> Iterator[Fault]:
    if not isinstance(variables, dict):
        yield _error(path, f"found {shown(variables)}; a mapping of names to text is expected")
        return
    for name, value in variables.items():
        if not isinstance(value, str):
            yield _error((*path, name), f"found {shown(value)}; text is expected: put it in quotes")
        elif SECRET.search(name) and value:
            yield _error(
                (*path, name),
                "a secret does not belong in a model file; run `pulumi config set --secret "
                "modelfleet:huggingFaceToken` for the Hub's token, or use env_vars_to_propogate for one that the nodes "
                "have",
            )
        elif not name or "=" in name:
            yield _error((*path, name), "is not a valid name for an environment variable")


def _mirror(data: Any) -> Iterator[Fault]:
    """Flags of `aws s3 sync` that RayLLM passed on: only one has a meaning here."""
    path: KeyPath = ("engine_config", "s3_mirror_config", "s3_sync_args")
    flags = _section(data, *path[:-1]).get("s3_sync_args")
    for index, flag in enumerate(flags if isinstance(flags, list) else []):
        if flag != "--no-sign-request":
            yield _error((*path, index), f"found {shown(flag)}; allowed is --no-sign-request, for a public bucket")


def _architecture(data: Any) -> Iterator[Fault]:
    """Model families that vLLM dropped, known by their ids; planning judges others by their `config.json`."""
    engine = _section(data, "engine_config")
    key = "hf_model_id" if engine.get("hf_model_id") else "model_id"
    architecture = architecture_of_id(engine[key]) if isinstance(engine.get(key), str) else None
    if architecture is not None and (fault := architecture_fault(architecture)) is not None:
        yield _error(("engine_config", key), f"found {engine[key]!r}: {fault}")


_RULES = (
    _accelerator, _resources, _placement, _executor, _pipeline, _data_parallel, _expert_parallel, _gpu_parts, _fallback,
    _replica, _autoscaling, _stops, _prompts, _runtime_envs, _mirror, _architecture,
)  # fmt: skip
