"""Helm values: vLLM's production stack, llm-d's modelservice, and charts that hold a container's command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from modelfleet.infra.interchange.containers import (
    container_of,
    environment_of,
    servers_of,
    words_of,
    workload_of,
    workloads_of,
)
from modelfleet.infra.interchange.kubernetes import hardware_of
from modelfleet.infra.interchange.servers import Server, servers_of_script
from modelfleet.infra.interchange.tree import items, mapping, text, walk, whole
from modelfleet.infra.interchange.workload import Note, Workload
from modelfleet.infra.names import GPU
from modelfleet.serving.config.document import Document

#: The production stack's keys of `vllmConfig` that are not spelled like vLLM's arguments.
_NOT_ARGUMENTS = frozenset({"extraArgs", "v1", "v0", "env"})


def read_production_stack(document: Document) -> Iterator[Workload]:
    """A workload for each `modelSpec` (vllm-project/production-stack, helm/templates/deployment-vllm-multi.yaml)."""
    for index, spec in enumerate(items(document.data, "servingEngineSpec", "modelSpec")):
        if not isinstance(spec, dict):
            continue
        config = mapping(spec, "vllmConfig")
        words = [
            text(spec, "modelURL"),
            *_options(config),
            *words_of(config.get("extraArgs")),
            *words_of(spec.get("extraArgs")),
        ]
        if "enablePrefixCaching" not in config:
            words.append("--no-enable-prefix-caching")  # what the chart passes then
        server = Server(
            tuple(words), environment_of(spec.get("env")), f"{text(spec, 'repository')}:{text(spec, 'tag')}"
        )
        gpus = text(spec, "requestGPU")
        container = container_of({"env": spec.get("env"), "resources": {"requests": {GPU: gpus} if gpus else {}}})
        line = document.line(("servingEngineSpec", "modelSpec", index))
        where = f"{document.file}:{line} (modelSpec {text(spec, 'name')})"
        found = workload_of(
            server,
            where,
            container,
            hardware=(*hardware_of(spec), text(spec, "requestGPUType")),
            replicas=whole(spec, "replicaCount"),
        )
        yield replace(found, notes=(*found.notes, *_stack_notes(spec)))


def _options(config: dict[str, Any]) -> Iterator[str]:
    """`maxModelLen: 4096` as `--max-model-len 4096`; booleans as switches."""
    for key, value in config.items():
        if key in _NOT_ARGUMENTS:
            continue
        option = re.sub(r"([A-Z])", lambda match: f"-{match[1].lower()}", key)
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif isinstance(value, str | int | float):
            yield from (f"--{option}", str(value))


def _stack_notes(spec: dict[str, Any]) -> Iterator[Note]:
    if mapping(spec, "lmcacheConfig").get("enabled"):
        yield Note(
            "lmcacheConfig",
            "LMCache is not in the replica's image; kv_offloading_size keeps blocks in the node's memory",
        )
    if mapping(spec, "kedaConfig").get("enabled") or mapping(spec, "keda").get("enabled"):
        yield Note("keda", "write autoscaling_config: Ray Serve scales on ongoing requests")
    if text(spec, "requestGPU") and whole(spec, "requestGPU") is None:
        yield Note(f"requestGPU {text(spec, 'requestGPU')}", "a worker has a whole GPU")
    for key in ("hf_token", "vllmApiKey"):
        if spec.get(key):
            yield Note(key, "it is a secret: `pulumi config set --secret`")


def read_modelservice(document: Document) -> Iterator[Workload]:
    """llm-d's modelservice: `modelArtifacts` and the decode pods (llm-d-incubation/llm-d-modelservice)."""
    data = document.data
    artifacts = mapping(data, "modelArtifacts")
    decode = mapping(data, "decode")
    for one in items(decode, "containers"):
        if not isinstance(one, dict):
            continue
        parallel = mapping(decode, "parallelism")
        sizes = {"tensor-parallel-size": whole(parallel, "tensor"), "data-parallel-size": whole(parallel, "data")}
        words = [f"--{name}={size}" for name, size in sizes.items() if size and size > 1]
        own = container_of(one)
        servers = list(servers_of(own)) or [Server((*own.arguments,), own.environment, own.image)]
        for server in servers:
            found = workload_of(
                replace(server, arguments=(*words, *server.arguments)),
                f"{document.file}:{document.line(('decode',))} (modelservice {text(artifacts, 'name')})",
                own,
                hardware=(text(data, "accelerator", "type"), *hardware_of(decode)),
                replicas=whole(decode, "replicas"),
            )
            name = text(artifacts, "name")
            arguments = {key: value for key, value in found.arguments.items() if key not in ("model", "model_tag")}
            arguments |= {"model": text(artifacts, "uri") or name, **({"served_model_name": [name]} if name else {})}
            prefill = mapping(data, "prefill")
            more = (
                (Note("prefill", "prefill on replicas of its own is not planned here; the replicas do both"),)
                if prefill.get("create")
                else ()
            )
            yield replace(found, arguments=arguments, notes=(*found.notes, *more))


def read_recipe(document: Document) -> Iterator[Workload]:
    """A recipe of vllm-project/recipes: the model and its arguments, with the features that are on without asking."""
    model = mapping(document.data, "model")
    left_out = set(map(str, items(document.data, "opt_in_features")))
    features = [one for name, one in mapping(document.data, "features").items() if name not in left_out]
    words = [text(model, "model_id"), *words_of(model.get("base_args"))]
    words += [word for feature in features for word in words_of(mapping(feature).get("args"))]
    environment = environment_of(model.get("base_env"))
    where = f"{document.file}:{document.line(('model',))} (recipe {text(model, 'model_id')})"
    found = workload_of(
        Server(tuple(words), environment, text(model, "docker_image")), where, container_of({"env": environment})
    )
    yield replace(
        found,
        notes=(*found.notes, *(Note(f"feature {name}", "the recipe leaves it to you") for name in sorted(left_out))),
    )


def read_anything(document: Document) -> Iterator[Workload]:
    """Whatever holds a server's command: containers of unknown charts, scripts and commands as text."""
    seen: set[tuple[str | int, ...]] = set()
    for path, value in walk(document.data):
        if any(path[:end] in seen for end in range(len(path) + 1)):
            continue
        found: list[Workload] = []
        where = f"{document.file}:{document.line(path)}"
        if isinstance(value, dict) and ({"command", "args"} & value.keys()):
            hardware = (*hardware_of(value), *hardware_of(document.data if isinstance(document.data, dict) else {}))
            found = list(
                workloads_of(
                    container_of(_with_image(value, document.data)),
                    where,
                    hardware=hardware,
                    replicas=whole(value, "replicaCount"),
                )
            )
        elif isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            found = list(workloads_of(container_of({"command": value}), where))
        elif isinstance(value, str) and "vllm" in value:
            found = [workload_of(server, where) for server in servers_of_script(value, {})]
        if found:
            seen.add(path)
            yield from found


def _with_image(value: dict[str, Any], data: Any) -> dict[str, Any]:
    """A chart's values have the image at the top and the arguments beside it."""
    return (
        value
        if "image" in value or not isinstance(data, dict)
        else {**value, "image": data.get("image"), "resources": value.get("resources") or data.get("resources")}
    )
