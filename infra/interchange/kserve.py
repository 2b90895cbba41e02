"""KServe: InferenceService with its ServingRuntime, and LLMInferenceService."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from modelfleet.infra.interchange.containers import (
    container_of,
    more_arguments,
    resolved,
    servers_of,
    words_of,
    workload_of,
)
from modelfleet.infra.interchange.kubernetes import hardware_of, replicas_between
from modelfleet.infra.interchange.servers import Server, starts_vllm
from modelfleet.infra.interchange.tree import items, mapping, text, whole
from modelfleet.infra.interchange.workload import Note, Workload
from modelfleet.serving.config.document import Document

KINDS = frozenset({"InferenceService", "LLMInferenceService", "ServingRuntime", "ClusterServingRuntime"})
#: KServe mounts `storageUri` there.
_MOUNTED = "/mnt/models"
#: Its Hugging Face server's own options that mean one of vLLM's (kserve/huggingfaceserver, __main__.py).
_SERVER_OPTIONS = {
    "model_id": "model",
    "model_dir": "model",
    "model_name": "served_model_name",
    "model_revision": "revision",
    "tokenizer_revision": "tokenizer_revision",
}
_SERVER_ONLY = frozenset(
    {
        "backend",
        "http_port",
        "grpc_port",
        "workers",
        "max_threads",
        "enable_docs_url",
        "enable_latency_logging",
        "task",
        "return_probabilities",
    }
)


def read_kserve(document: Document, others: Sequence[Document]) -> Iterator[Workload]:
    """The workloads of one object of KServe; a runtime is merged into the services of the file that name it."""
    kind = text(document.data, "kind")
    if kind == "LLMInferenceService":
        yield from _llm(document)
    elif kind == "InferenceService":
        yield from _inference(document, others)
    elif not any(text(other.data, "kind") == "InferenceService" for other in others):
        for found in _service(document, document.data, {}, mapping(document.data, "spec")):
            # A runtime alone serves what a service will name; one that names a model itself is a model.
            if not str(found.arguments.get("model", found.arguments.get("model_tag", _MOUNTED))).startswith(_MOUNTED):
                yield found


def _inference(document: Document, others: Sequence[Document]) -> Iterator[Workload]:
    predictor = mapping(document.data, "spec", "predictor")
    wanted = text(predictor, "model", "runtime")
    runtimes = [other.data for other in others if "ServingRuntime" in text(other.data, "kind")]
    named = [one for one in runtimes if text(one, "metadata", "name") == wanted] or (runtimes if not wanted else [])
    yield from _service(document, document.data, predictor, mapping(named[0], "spec") if named else {})


def _service(document: Document, data: Any, predictor: dict[str, Any], runtime: dict[str, Any]) -> Iterator[Workload]:
    """The predictor's container over the runtime's, as KServe merges them by name."""
    name = text(data, "metadata", "name")
    model = mapping(predictor, "model")
    own = [one for one in items(predictor, "containers") if isinstance(one, dict)]
    below = [one for one in items(runtime, "containers") if isinstance(one, dict)]
    container = _merged(below[0] if below else {}, own[0] if own else model)
    container["args"] = [
        _filled(word, name)
        for word in [
            *words_of((below[0] if below else {}).get("args")),
            *words_of((own[0] if own else model).get("args")),
        ]
    ]
    uri = text(model, "storageUri") or text(predictor, "storageUri") or _storage(model)
    for server in _servers(container, model):
        found = workload_of(
            server, _place(document), container_of(container), hardware=hardware_of({**runtime, **predictor})
        )
        arguments = dict(found.arguments)
        source = str(arguments.get("model", arguments.get("model_tag", _MOUNTED)))
        if source.startswith(_MOUNTED) and uri:
            arguments |= {"model": uri}
            arguments.pop("model_tag", None)
        arguments.setdefault("served_model_name", [name])
        scaling = replicas_between(whole(predictor, "minReplicas"), whole(predictor, "maxReplicas"))
        if scaling and text(predictor, "scaleMetric") == "concurrency" and (target := whole(predictor, "scaleTarget")):
            scaling["target_ongoing_requests"] = target
        yield replace(found, arguments=arguments, autoscaling=scaling, replicas=whole(predictor, "minReplicas"))


def _servers(container: dict[str, Any], model: dict[str, Any]) -> Iterator[Server]:
    found = list(servers_of(container_of(container)))
    hugging_face = text(model, "modelFormat", "name") == "huggingface" or "huggingfaceserver" in str(
        container.get("image")
    )
    named = "vllm" in text(model, "runtime").lower() or text(model, "modelFormat", "name").lower() == "vllm"
    if not found and (hugging_face or named or starts_vllm(str(container.get("image", "")))):
        # The runtime is not in the file; what it adds to the arguments is not known, and KServe's own add nothing else.
        outside = resolved(container_of(container).environment)
        found = [Server((*words_of(container.get("args")), *more_arguments(outside)), outside, "vllm-openai")]
    for server in found:
        yield replace(server, arguments=tuple(_engine_words(server.arguments)))


def _engine_words(words: Sequence[str]) -> Iterator[str]:
    """The Hugging Face server's options as vLLM's."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name = word.lstrip("-").partition("=")[0].replace("-", "_") if word.startswith("--") else ""
        if name in _SERVER_ONLY:
            if "=" not in word and rest and not rest[0].startswith("--"):
                rest.pop(0)
        elif name in _SERVER_OPTIONS:
            yield word.replace(word[2:].partition("=")[0], _SERVER_OPTIONS[name].replace("_", "-"), 1)
        else:
            yield word


def _llm(document: Document) -> Iterator[Workload]:
    """LLMInferenceService: the model and the parallelism are fields; KServe's templates write the command."""
    spec = mapping(document.data, "spec")
    template = mapping(spec, "template")
    containers = [one for one in items(template, "containers") if isinstance(one, dict)]
    main = next((one for one in containers if one.get("name") == "main"), containers[0] if containers else {})
    container = {"image": "vllm-openai", **main}
    parallel = mapping(spec, "parallelism")
    fields = {
        "tensor-parallel-size": whole(parallel, "tensor"), "pipeline-parallel-size": whole(parallel, "pipeline"),
        "data-parallel-size": whole(parallel, "data"), "data-parallel-size-local": whole(parallel, "dataLocal"),
    }  # fmt: skip
    words = [f"--{name}={size}" for name, size in fields.items() if size and (size > 1 or name.endswith("-local"))]
    words += ["--enable-expert-parallel"] if parallel.get("expert") is True else []
    own = container_of(container)
    servers = list(servers_of(own)) or [Server(tuple(own.arguments), resolved(own.environment), own.image)]
    for server in servers:
        arguments = [word for word in server.arguments if not word.startswith(_MOUNTED)]
        more = more_arguments(own.environment) if not list(servers_of(own)) else []
        joined = replace(server, arguments=(*words, *arguments, *more))
        found = workload_of(joined, _place(document), own, hardware=hardware_of(template))
        ids = {
            "model": text(spec, "model", "uri"),
            "served_model_name": [text(spec, "model", "name") or text(document.data, "metadata", "name")],
        }
        lora = [
            {"name": text(one, "name"), "path": text(one, "uri")} for one in items(spec, "model", "lora", "adapters")
        ]
        extra = {"lora_modules": lora} if lora else {}
        rest = {key: value for key, value in found.arguments.items() if key not in ("model", "model_tag")}
        yield replace(
            found,
            arguments={**rest, **{key: value for key, value in ids.items() if value}, **extra},
            replicas=whole(spec, "replicas"),
            notes=(*found.notes, *_llm_notes(spec)),
        )


def _llm_notes(spec: dict[str, Any]) -> Iterator[Note]:
    for key, why in (
        ("prefill", "prefill on replicas of its own is not planned here; the replicas do both"),
        ("worker", "a replica's workers share one node"),
        ("baseRefs", "what those configurations add is not in this file"),
    ):
        if spec.get(key):
            yield Note(f"spec.{key}", why)
    if mapping(spec, "router", "scheduler") or "scheduler" in mapping(spec, "router"):
        yield Note("spec.router.scheduler", "the gateway in front chooses the replica")


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A container over another: lists of variables are joined, resources merged, the rest replaced."""
    merged = {**below, **{key: value for key, value in above.items() if key not in ("env", "resources")}}
    merged["env"] = [*items(below, "env"), *items(above, "env")]
    merged["resources"] = {
        kind: {**mapping(below, "resources", kind), **mapping(above, "resources", kind)}
        for kind in ("requests", "limits")
    }
    return merged


def _filled(word: str, name: str) -> str:
    """KServe puts the service's name into a runtime's arguments."""
    return re.sub(r"\{\{\s*\.Name\s*\}\}", name, word)


def _storage(model: dict[str, Any]) -> str:
    """`storage` in place of `storageUri`: a path below a bucket that a Secret names."""
    path = text(model, "storage", "path")
    return f"storage of the cluster: {path}" if path else ""


def _place(document: Document) -> str:
    what = f"{text(document.data, 'kind')} {text(document.data, 'metadata', 'name')}"
    return f"{document.file}:{document.line(('kind',))} ({what})"
