"""A model file as the command or file that serves the same model without modelfleet.

What the other format has no place for stands in comments, as a merge patch that `modelfleet import` reads back: an
import of an export is the same plan.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from modelfleet.infra.interchange.arguments import parse
from modelfleet.infra.interchange.draft import draft_of, patch_between
from modelfleet.infra.interchange.ray_serve_llm import read_ray_serve
from modelfleet.infra.interchange.workload import Workload
from modelfleet.serving.config.catalogs import command_line, engine_arguments, front_end_arguments
from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.errors import InputErrors
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import GATEWAY_KEYS, SCALING_KEYS, data_ranks_of, stages_of
from modelfleet.serving.engine_args import SHUT
from modelfleet.serving.engine_args import engine_arguments as served_arguments

_MARK = "# modelfleet: "
_ABOUT = "What the other format has no key for; `modelfleet import` reads these lines back."
#: How our replicas run; vLLM alone decides that itself.
_OURS = frozenset(
    {*SHUT, "enable_log_requests", "distributed_executor_backend", "lora_modules", "enable_lora", "max_lora_rank"}
)
_DEFAULTS = {"tensor_parallel_size": 1}


def to_vllm(model: LoadedModel) -> str:
    """A shell script with one `vllm serve` command."""
    arguments = _arguments(model.config)
    words = ["vllm", "serve", str(arguments.pop("model"))]
    if "://" in words[-1]:
        arguments.setdefault("load_format", "runai_streamer")  # what reads a bucket (vLLM 0.32, vllm/config/load.py)
    lines = [shlex.join(words), *(shlex.join(option) for option in _options(arguments))]
    variables = _variables(model.config)
    setting = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    parsed = parse(words[2:] + [word for option in _options(arguments) for word in option])
    again = draft_of(Workload(model.file, parsed.arguments, environment=variables)).data
    comments = [*_patch_lines(again, model), *_on_each_node(model.config)]
    script = " \\\n  ".join(lines)
    return (
        "\n".join(
            [
                "#!/bin/sh",
                f"# {model.config.model_id}, from {model.file}, for vLLM alone.",
                *comments,
                *setting,
                f"exec {script}",
            ]
        )
        + "\n"
    )


def to_ray_serve_llm(model: LoadedModel) -> str:
    """A Ray Serve config with one LLMConfig: `serve run FILE`."""
    config = model.config
    arguments = _arguments(config)
    source = arguments.pop("model")
    arguments.pop("served_model_name")
    loading = {"model_id": config.model_id, "model_source": {"bucket_uri": source} if "://" in str(source) else source}
    if tokenizer := arguments.pop("tokenizer", None):
        loading["tokenizer_source"] = tokenizer
    llm: dict[str, Any] = {"model_loading_config": loading}
    if config.accelerator != "CPU":
        llm["accelerator_type"] = config.accelerator
    ours: dict[str, Any] = dict.fromkeys((*GATEWAY_KEYS, "slo"), True)
    ours["autoscaling_config"] = set(SCALING_KEYS)
    llm["deployment_config"] = config.deployment_config.model_dump(
        mode="json", exclude_unset=True, exclude_none=True, exclude=ours
    )
    llm["engine_kwargs"] = arguments
    if variables := _variables(config):
        llm["runtime_env"] = {"env_vars": variables}
    llm = {key: value for key, value in llm.items() if value != {}}
    # With ranks Ray's builder takes one model, and makes a Serve replica of each rank.
    ranked = data_ranks_of(config) > 1
    application = {
        "name": config.slug,
        "route_prefix": "/",
        "import_path": f"ray.serve.llm:{'build_dp_openai_app' if ranked else 'build_openai_app'}",
        "args": {"llm_config": llm} if ranked else {"llm_configs": [llm]},
    }
    body = yaml.safe_dump({"applications": [application]}, sort_keys=False, width=118, allow_unicode=True)
    workload = next(read_ray_serve(parse_document(body.encode(), model.file)))
    comments = _patch_lines(draft_of(workload).data, model)
    about = [f"# {config.model_id}, from {model.file}, for Ray Serve LLM alone: `serve run FILE`."]
    if ranked:
        about.append(
            "# Each rank is a Serve replica there, so max_ongoing_requests and target_ongoing_requests are a rank's."
        )
    return "\n".join([*about, *comments, body])


def patch_in(text: str) -> Mapping[str, Any]:
    """The merge patch in the comments of an export of ours; empty without one."""
    lines = [
        line.lstrip().removeprefix(_MARK.rstrip())
        for line in text.splitlines()
        if line.lstrip().startswith(_MARK.rstrip())
    ]
    if not lines:
        return {}
    try:
        found = parse_document("\n".join(line.removeprefix(" ") for line in lines).encode(), "").data
    except InputErrors:
        return {}
    return found if isinstance(found, dict) else {}


def _arguments(config: ModelConfig) -> dict[str, Any]:
    """vLLM's arguments as our replica passes them, without what is about the replica."""
    engine = config.engine_config
    source = next(
        (mirror.bucket_uri for mirror in _mirrors(config) if mirror.bucket_uri), engine.hf_model_id or engine.model_id
    )
    found = {
        name: value
        for name, value in served_arguments(config, str(source)).items()
        if name not in _OURS and _DEFAULTS.get(name) != value
    }
    if engine.revision:
        found["revision"] = engine.revision
    return found


def _mirrors(config: ModelConfig) -> Iterator[Any]:
    engine = config.engine_config
    yield from (one for one in (engine.s3_mirror_config, engine.gcs_mirror_config, engine.azure_mirror_config) if one)


def _variables(config: ModelConfig) -> dict[str, str]:
    found = config.engine_config.runtime_env.get("env_vars", {})
    return {str(name): str(value) for name, value in found.items() if re.fullmatch(r"[A-Za-z_]\w*", str(name))}


def _on_each_node(config: ModelConfig) -> list[str]:
    """How the command becomes that of one node among several, as a comment."""
    if (nodes := stages_of(config)) == 1:
        return []
    added = f"--nnodes {nodes} --node-rank RANK --master-addr FIRST"
    return [f"# On each of {nodes} nodes: append {added}, and --headless but on the first."]


def _options(arguments: Mapping[str, Any]) -> Iterator[list[str]]:
    """Each argument as vLLM's command line spells it."""
    known = engine_arguments() | front_end_arguments()
    for name, value in arguments.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool) and "bool" in known.get(name, {}).get("kinds", ()):
            yield [option if value else f"--no-{option[2:]}"]
        elif isinstance(value, list) and name in command_line()["several"]:
            yield [option, *map(str, value)]
        elif isinstance(value, dict | list):
            yield [option, json.dumps(value)]
        elif value is not None:
            yield [option, str(value)]


def _patch_lines(again: dict[str, Any], model: LoadedModel) -> list[str]:
    """What the import of this export would lack, as comments."""
    patch = patch_between(again, model.document.data)
    if not patch:
        return []
    text = yaml.safe_dump(patch, sort_keys=False, width=110, allow_unicode=True)
    return [f"# {_ABOUT}", *(f"{_MARK}{line}".rstrip() for line in text.splitlines())]
