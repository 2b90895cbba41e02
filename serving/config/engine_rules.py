"""Rules for `engine_config.engine_kwargs`, checked against the pinned vLLM's own list of arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

from modelfleet.serving.config.catalogs import engine_arguments, front_end_arguments, parsers, removed, vllm_version
from modelfleet.serving.config.document import Document, KeyPath
from modelfleet.serving.config.errors import Finding, shortened
from modelfleet.serving.config.validation import near, shown

KWARGS: KeyPath = ("engine_config", "engine_kwargs")

_OWN_MEETING = (
    "vLLM's nodes find each other by what the replica says; pipeline_parallel_size is how many nodes it has, and "
    "num_workers all their workers"
)
_RANKS = (
    "a replica's ranks are on its node behind one front end, and data_parallel_size alone says how many; for more than "
    "a node raise deployment_config.num_replicas or max_replicas"
)
_GATEWAY = "the gateway in front does this; leave it out"

#: Arguments that other keys set, and which key sets each.
RESERVED: dict[str, str] = {
    "model": "engine_config.hf_model_id (or model_id) sets it",
    "model_weights": "engine_config.hf_model_id (or model_id) sets it",
    "revision": "engine_config.revision sets it",
    "tensor_parallel_size": "scaling_config.num_workers sets it",
    "max_model_len": "engine_config.max_total_tokens sets it",
    "served_model_name": "engine_config.model_id sets it",
    "worker_use_ray": "it follows from scaling_config; distributed_executor_backend: ray chooses Ray",
    "disable_log_stats": "the metrics need vLLM's statistics; leave it out",
    "hf_token": "a token is a secret; run `pulumi config set --secret modelfleet:huggingFaceToken`",
    "load_s3_path": "it belonged to a private fork of vLLM; use s3_mirror_config.bucket_uri",
    "lora_modules": "engine_config.lora sets it",
    "prefill_context_parallel_size": "a replica's workers are tensor parallel; raise scaling_config.num_workers",
    "api_key": "a key is a secret; run `pulumi config set --secret modelfleet:apiKeys`",
} | dict.fromkeys(
    ("nnodes", "node_rank", "master_addr", "master_port"),
    _OWN_MEETING,
) | dict.fromkeys(
    (
        "data_parallel_rank", "data_parallel_start_rank", "data_parallel_size_local", "data_parallel_address",
        "data_parallel_rpc_port", "data_parallel_hybrid_lb", "data_parallel_external_lb",
        "data_parallel_multi_port_external_lb", "data_parallel_backend",
    ),
    _RANKS,
)  # fmt: skip

#: What an entry of `scaling_config.fallback` cannot say, because it is decided before a replica knows its card.
PLACED: dict[str, str] = {
    "distributed_executor_backend": "Ray places a replica before its card is known; set it in engine_config",
    "data_parallel_size": "Ray places a replica before its card is known; set it in engine_config",
    "trust_remote_code": "the model's code is the same on every card; set it in engine_config",
} | dict.fromkeys(
    ("cpu_offload_gb", "kv_offloading_size"),
    "a replica's share of its node's memory is reserved before its card is known; set it in engine_config",
)

#: The front-end arguments that a model file may set; the others are about listening, which the replica does not do.
FRONT_END = frozenset(
    {
        "chat_template", "chat_template_content_format", "default_chat_template_kwargs", "enable_auto_tool_choice",
        "enable_force_include_usage", "enable_log_deltas", "enable_log_outputs", "enable_per_request_metrics",
        "enable_prompt_tokens_details", "exclude_tools_when_tool_choice_none", "max_log_len", "response_role",
        "return_tokens_as_token_ids", "tool_call_parser", "tool_parser_plugin", "tool_strict_level",
    }
)  # fmt: skip

#: Arguments that name a parser, and the argument that brings more of them.
PARSERS = {"tool_call_parser": "tool_parser_plugin", "reasoning_parser": "reasoning_parser_plugin"}

_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "bool": ("true or false", (bool,)),
    "str": ("text", (str,)),
    "object": ("a mapping", (dict,)),
    "list": ("a list", (list,)),
    "null": ("null", (type(None),)),
}


_BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "ge": ("at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("below", operator.lt),
}


def engine_findings(document: Document, data: Any) -> Iterator[Finding]:
    """Everything that is wrong with the engine arguments of a model file's (normalised) data."""
    engine = data.get("engine_config")
    kwargs = engine.get("engine_kwargs") if isinstance(engine, dict) else None
    if not isinstance(kwargs, dict):
        return
    for name, value in kwargs.items():
        for path, message in argument_faults(name, value):
            yield document.finding((*KWARGS, name, *path), message)
    broken = set(_together(kwargs, engine))
    for name, message in sorted(broken):
        yield document.finding((*KWARGS, name), message)
    for index, own in _fallbacks(data):
        yield from _fallback_findings(document, index, own, {**kwargs, **own}, engine, broken)


def _fallbacks(data: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The engine arguments of each `scaling_config.fallback`, with its place in the list."""
    scaling = data.get("scaling_config")
    entries = scaling.get("fallback") if isinstance(scaling, dict) else None
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        kwargs = entry.get("engine_kwargs") if isinstance(entry, dict) else None
        if isinstance(kwargs, dict):
            yield index, kwargs


def _fallback_findings(
    document: Document,
    index: int,
    own: dict[str, Any],
    merged: dict[str, Any],
    engine: dict[str, Any],
    known: set[tuple[str, str]],
) -> Iterator[Finding]:
    """What is wrong with the arguments on another accelerator, alone and over the model's own."""
    path: KeyPath = ("scaling_config", "fallback", index, "engine_kwargs")
    for name, value in own.items():
        if name in PLACED:
            yield document.finding((*path, name), f"cannot be set here: {PLACED[name]}")
        elif value is not None:
            for inside, message in argument_faults(name, value):
                yield document.finding((*path, name, *inside), message)
    for name, message in sorted(set(_together(merged, engine)) - known):
        yield document.finding((*path, name) if name in own else path, message)


def argument_faults(name: str, value: Any) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with one argument of `engine_kwargs`, and where inside its value."""
    if name in RESERVED:
        yield (), f"cannot be set here: {RESERVED[name]}"
    elif name in removed("arguments"):
        yield (), removed("arguments")[name].sentence()
    elif (entry := _allowed().get(name)) is not None:
        yield from _value(name, value, entry)
    elif name in front_end_arguments():
        yield (), f"cannot be set here: {_GATEWAY}"
    else:
        suggestion = near(name, [*_allowed(), *RESERVED])
        hint = "" if suggestion.endswith("?") else "; schemas/model.schema.json lists them"
        yield (), f"unknown to vLLM {vllm_version()}, {suggestion}{hint}"


def _allowed() -> dict[str, dict[str, Any]]:
    front_end = {name: entry for name, entry in front_end_arguments().items() if name in FRONT_END}
    return front_end | engine_arguments()


def _value(name: str, value: Any, entry: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    kinds, choices = entry["kinds"], entry.get("choices", [])
    if name == "quantization" and isinstance(value, str) and value in removed("quantization"):
        yield (), f"found {value!r}, which {removed('quantization')[value].sentence()}"
    elif name == "quantization" and isinstance(value, str) and value not in choices:
        yield (), f"found {value!r}; {near(value, map(str, choices), at_most=40)}"
    elif value is None and "null" not in kinds:
        yield (), "found null; leave it out for vLLM's default"
    elif value is None or any(value == choice and type(value) is type(choice) for choice in choices):
        return
    elif not _is_of(value, kinds) or (isinstance(value, float) and not math.isfinite(value)):
        yield (), f"found {shown(value)}; {_expected(value, kinds, choices)}"
    elif fault := _out_of_bounds(value, entry):
        yield (), f"found {shown(value)}; must be {fault}"
    elif isinstance(value, dict) and "keys" in entry:
        for key in value:
            if key not in entry["keys"]:
                yield (key,), f"unknown, {near(str(key), entry['keys'])}"


def _is_of(value: Any, kinds: list[str]) -> bool:
    """Whether `value` is of one of `kinds`; a bool is an int in Python but not in YAML."""
    return any(isinstance(value, _KINDS[kind][1]) and (kind == "bool" or not isinstance(value, bool)) for kind in kinds)


def _expected(value: Any, kinds: list[str], choices: list[Any]) -> str:
    if choices and "str" not in kinds:
        return near(str(value), map(str, choices), at_most=40)
    return " or ".join(_KINDS[kind][0] for kind in kinds if kind != "null") + " is expected"


def _out_of_bounds(value: Any, entry: dict[str, Any]) -> str | None:
    if not isinstance(value, int | float):
        return None
    for name, (word, holds) in _BOUNDS.items():
        if name in entry and not holds(value, entry[name]):
            return f"{word} {entry[name]}"
    return None


def _together(kwargs: dict[str, Any], engine: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Rules over more than one argument."""
    batched, seqs = kwargs.get("max_num_batched_tokens"), kwargs.get("max_num_seqs")
    if isinstance(batched, int) and isinstance(seqs, int) and batched < seqs:
        yield "max_num_batched_tokens", f"found {batched}; must be at least max_num_seqs, {seqs}"
    length = engine.get("max_total_tokens")
    whole_prompts = kwargs.get("enable_chunked_prefill") is False
    if whole_prompts and isinstance(batched, int) and isinstance(length, int) and batched < length:
        message = f"found {batched}; without chunked prefill it must be at least max_total_tokens, {length}"
        yield "max_num_batched_tokens", message
    generation = engine.get("generation")
    if kwargs.get("chat_template") and isinstance(generation, dict) and generation.get("prompt_format"):
        yield "chat_template", "clashes with generation.prompt_format; keep one of them"
    if kwargs.get("tokenizer") and engine.get("tokenizer_id"):
        yield "tokenizer", "clashes with engine_config.tokenizer_id; keep one of them"
    if kwargs.get("skip_tokenizer_init") is True and (text := _first_stop_of_text(generation)):
        message = (
            f"clashes with {text}, which only a tokenizer can find in an answer; "
            "keep single token ids there, or leave skip_tokenizer_init out"
        )
        yield "skip_tokenizer_init", message
    if kwargs.get("enable_auto_tool_choice") is True and not kwargs.get("tool_call_parser"):
        yield "enable_auto_tool_choice", "needs tool_call_parser, the name of the model's tool call format"
    for name, plugin in PARSERS.items():
        if not kwargs.get(plugin) and (fault := parser_fault(name, kwargs.get(name))):
            yield name, fault


def parser_fault(name: str, value: Any) -> str | None:
    """What is wrong with a parser's name; `name` is the argument that names it. None for "", which means no parser."""
    if not isinstance(value, str) or not value or value in parsers(name):
        return None
    return f"found {shown(value)}; {near(value, parsers(name), at_most=60)}"


def _first_stop_of_text(generation: Any) -> str | None:
    """The first stop that is not one token's id (`2` or `[2]`), with the key that has it."""
    if not isinstance(generation, dict):
        return None
    kwargs = generation.get("generate_kwargs")
    stops = {
        "generation.stopping_sequences": generation.get("stopping_sequences"),
        "generation.generate_kwargs.stop": kwargs.get("stop") if isinstance(kwargs, dict) else None,
    }
    for key, entries in stops.items():
        for entry in entries if isinstance(entries, list) else [entries]:
            only = entry[0] if isinstance(entry, list) and len(entry) == 1 else entry
            if only is not None and not isinstance(only, int):
                return f"{key}: {shortened(repr(entry), 60)}"
    return None
