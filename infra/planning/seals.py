"""Sealed compile caches: which models have one, by what it is named, and what making it costs. Pure.

Where a pool has `sealedCaches`, a warm-up Job starts each of its models once, on a node of the pool, and writes what
vLLM, Triton and FlashInfer compiled into the stack's bucket. Replicas copy it there instead of compiling. A seal is
executed, so only the Jobs' role may write one, and no Job runs a model that brings code of its own.

It is off by default: each edit of a model's arguments, and each new image, takes a node with a GPU for minutes, and a
replica that never moves to a new node gains nothing.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from modelfleet.infra.names import SEALS
from modelfleet.infra.planning.applications import draft_mirror, mirror_plan, tokenizer_mirror
from modelfleet.infra.planning.candidates import PoolChoice
from modelfleet.infra.planning.plan import MirrorPlan, SealPlan
from modelfleet.infra.planning.start_up import StartUp, is_eager, unknown_seconds
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import (
    RAY_ENVIRONMENT,
    actor_options,
    data_ranks_of,
    stages_of,
    workers_are_ray_actors,
)
from modelfleet.serving.engine_args import DEFAULT_ENVIRONMENT, SHUT, engine_arguments

#: Digits of a key. It is part of the folder's path on the node, which compilers write into their files.
KEY_DIGITS: Final = 16
#: What a Job takes beside a replica's start: it asks the model, ends it, and writes the seal.
WRITE_S: Final = 60
#: How long cluster-autoscaler lets a node run that nobody needs any more (`--scale-down-unneeded-time`).
NODE_IDLE_S: Final = 600
#: Variables by which a model file places the caches itself.
PLACES: Final = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE", "CUDA_CACHE_PATH")
#: Arguments of vLLM's front end, which change no compiled code: an edit of a prompt buys no node.
NOT_COMPILED: Final = (
    *SHUT,
    "allowed_media_domains",
    "chat_template",
    "chat_template_content_format",
    "enable_auto_tool_choice",
    "enable_log_requests",
    "generation_config",
    "override_generation_config",
    "reasoning_parser",
    "served_model_name",
    "tool_call_parser",
)


def seal_plan(
    stack: LoadedStack, choice: PoolChoice, model: ModelConfig, *, image: str, start: StartUp | None
) -> SealPlan | None:
    """The seal of a model, as its replicas serve it; None where its pool has no `sealedCaches`.

    `start` is that of a replica without one.
    """
    if not choice.pool.sealed_caches:
        return None
    if because := _without(stack, model):
        return SealPlan(None, because, 0, 0.0)
    prefix = f"{SEALS}/{model.slug}/{seal_key(stack, model, image)}"
    if choice.least >= choice.pool.max_nodes:
        full = f"its pool's fewest replicas take all {choice.pool.max_nodes} nodes; raise maxNodes"
        return SealPlan(prefix, full, 0, 0.0)
    seconds = (start.seconds if start else unknown_seconds(stack.config.target, model.accelerator)) + WRITE_S
    price = choice.candidate.dearest_usd_per_hour if stack.config.target.priced else 0.0
    paid_s = seconds + (NODE_IDLE_S if stack.config.target.makes_cluster else 0)
    usd = None if price is None else price * paid_s / 3600
    return SealPlan(prefix, "", round(seconds), usd)


def seal_key(stack: LoadedStack, model: ModelConfig, image: str) -> str:
    """A hash of what decides the compiled code: image, accelerator, vLLM's arguments and environment, and the weights.

    Of our code that counts which makes the arguments: another release with the same arguments has the same key.
    """
    arguments = engine_arguments(model, "")
    content: dict[str, Any] = {
        "image": image,
        "accelerator": model.accelerator,
        "arguments": {name: value for name, value in arguments.items() if name not in NOT_COMPILED},
        "environment": {**DEFAULT_ENVIRONMENT, **RAY_ENVIRONMENT, **_variables(model)},
        "weights": [_named(one) for one in _loaded(stack, model)],
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def seal_findings(stack: LoadedStack) -> list[Finding]:
    """`sealedCaches` where no Job runs, or where it has no bucket to write to."""
    found = []
    for index, pool in enumerate(stack.config.pools):
        at = ("pools", index, "sealedCaches")
        if pool.sealed_caches and stack.config.target.on_this_machine:
            message = "found true, but this machine keeps its own compile caches from one run to the next; remove it"
            found.append(stack.finding(at, message))
        elif pool.sealed_caches and not stack.config.mirror.create:
            message = "found true, but the stack fills no bucket; remove it, or set mirror.create to true"
            found.append(stack.finding(at, message))
    return found


def _without(stack: LoadedStack, model: ModelConfig) -> str:
    """Why this model can have no seal; empty where it can. It depends on no other model: it decides an argument."""
    mirror = mirror_plan(stack, model)
    if is_eager(model):
        return "it runs eagerly, so nothing is compiled"
    if model.model_id in stack.config.trust.foreign_code:
        return "it brings code of its own, which would run with the right to write every model's seal"
    if stages_of(model) > 1:
        return "its replicas are over several nodes, which a Job has not"
    if data_ranks_of(model) > 1:
        return "its data parallel ranks compile side by side, which was not tried"
    if workers_are_ray_actors(model):
        return "its workers are Ray's, which a Job has not"
    if named := [name for name in PLACES if name in _variables(model)]:
        return f"its file places the cache itself ({', '.join(named)})"
    if mirror.prefix is None and not mirror.source.startswith("s3://"):
        return "its weights are in no bucket that a Job can read"
    return ""


def _loaded(stack: LoadedStack, model: ModelConfig) -> list[MirrorPlan]:
    found = (mirror_plan(stack, model), draft_mirror(stack, model, None), tokenizer_mirror(stack, model))
    return [one for one in found if one is not None]


def _named(mirror: MirrorPlan) -> list[str | None]:
    return [mirror.source, mirror.revision, mirror.prefix]


def _variables(model: ModelConfig) -> dict[str, str]:
    variables: dict[str, str] = actor_options(model)["runtime_env"]["env_vars"]
    return variables
