"""Serve applications, weights, bucket and routes: what each model becomes behind the gateway."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelfleet.infra.planning.gateway_paths import RESERVED
from modelfleet.infra.planning.plan import (
    BucketPlan,
    CodeArtifact,
    GatewayPlan,
    MirrorPlan,
    ModelKind,
    Route,
    ServeApplication,
)
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.engine_schema import EngineConfig
from modelfleet.serving.config.errors import Finding
from modelfleet.serving.config.generate_kwargs import default_max_tokens
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import replica_bounds

#: Tokens that an answer is charged with where neither file nor facts say how long a model is: that of most models of
#: 2024 and later, 128 Ki.
UNKNOWN_LENGTH = 131_072
IMPORT_PATH = "modelfleet.serving.app:build"


def mirror_plan(stack: LoadedStack, model: ModelConfig, size: int | None = None) -> MirrorPlan:
    """Where the weights come from, and the prefix of the stack's own copy if it keeps one; `size` in bytes."""
    engine = model.engine_config
    source = stack.config.mirror.sources.get(engine.weights_id, engine.weights_id)
    if engine.mirror_config is not None and engine.mirror_config.bucket_uri:
        return MirrorPlan(engine.mirror_config.bucket_uri, engine.revision, None, size)
    on_node = engine.weights_id.startswith("/") and source == engine.weights_id
    mirrored = stack.config.mirror.create and not on_node
    return MirrorPlan(source, engine.revision, f"models/{model.slug}" if mirrored else None, size)


def kind_of(engine: EngineConfig) -> ModelKind:
    """The model's kind by its file: `model_type` and vLLM's `runner`, `convert` and `hf_overrides`.

    vLLM 0.32 `vllm/config/model.py`: the pooling runner makes embeddings unless the architecture says otherwise; a
    classifier with one label scores pairs, which is what rerankers do.
    """
    arguments = engine.engine_kwargs
    overrides = arguments.get("hf_overrides")
    overrides = overrides if isinstance(overrides, Mapping) else {}
    named = str(overrides.get("architectures", ""))
    if arguments.get("convert") == "classify" or "ForSequenceClassification" in named:
        one_label = overrides.get("num_labels") == 1 or "classifier_from_token" in overrides
        return "reranker" if one_label else "classifier"
    pools = arguments.get("convert") == "embed" or arguments.get("runner") == "pooling"
    return "embedding" if pools or engine.model_type == "embedding" else "text"


def application(model: ModelConfig, mirror: MirrorPlan, bucket: str | None, code: CodeArtifact) -> ServeApplication:
    """One Serve application per model, its whole file in `args`, its code named by content."""
    args: dict[str, Any] = {
        "model": model.model_dump(mode="json", exclude_unset=True),
        "weights": {
            "source": mirror.source,
            "revision": mirror.revision,
            "mirror": f"s3://{bucket}/{mirror.prefix}" if mirror.prefix else None,
        },
    }
    return ServeApplication(
        name=model.slug,
        route_prefix=f"/{model.slug}",
        import_path=IMPORT_PATH,
        args=args,
        runtime_env={"working_dir": f"s3://{bucket}/{code.key}"},
    )


def bucket_plan(stack: LoadedStack, models: Sequence[LoadedModel]) -> tuple[BucketPlan, list[Finding]]:
    """The stack's bucket for the applications' code and the weights, and a finding if it has no name."""
    config = stack.config
    findings: list[Finding] = []
    name = config.mirror.bucket
    if name is None and config.target.on_this_machine:
        name = f"modelfleet-{stack.name}"
    elif name is None and config.account_id:
        name = f"modelfleet-{stack.name}-{config.account_id}"
    elif name is None:
        message = "has no name; give `bucket`, or `modelfleet:accountId` for the default modelfleet-<stack>-<accountId>"
        findings.append(stack.finding(("mirror",), message))
    named = (
        mirror.bucket_uri
        for model in models
        if (mirror := model.config.engine_config.s3_mirror_config) is not None and mirror.bucket_uri
    )
    protect = config.cluster.deletion_protection
    sources = (source for source in config.mirror.sources.values() if source.startswith("s3://"))
    return BucketPlan(config.mirror.create, name, protect, _prefixes(named), _prefixes(sources)), findings


def _prefixes(uris: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({uri.removeprefix("s3://").rstrip("/") for uri in uris}))


def gateway_plan(stack: LoadedStack, models: Sequence[LoadedModel]) -> GatewayPlan:
    """Routes sorted by model id; a route also serves the names of its model's LoRA adapters."""
    routes = tuple(
        Route(
            model_id=config.model_id,
            slug=config.slug,
            model_ids=(config.model_id, *(adapter.name for adapter in config.engine_config.lora)),
            description=config.engine_config.model_description,
            url=config.engine_config.model_url,
            kind=config.engine_config.model_type,
            scales_to_zero=replica_bounds(config)[0] == 0,
            answer_tokens=_answer_tokens(config),
        )
        for config in sorted((m.config for m in models), key=lambda c: c.model_id)
    )
    return GatewayPlan(routes, stack.config.auth, stack.config.gateway)


def _answer_tokens(model: ModelConfig) -> int:
    """Most tokens of an answer whose request sets no limit: the file's max_tokens, otherwise the model's length.

    0 for a model that writes none, which `/invocations` may ask for embeddings.
    """
    if kind_of(model.engine_config) != "text":
        return 0
    default = default_max_tokens(model.engine_config.generation.generate_kwargs)
    if default is not None:
        return default
    return model.engine_config.length or UNKNOWN_LENGTH


def name_findings(models: Sequence[LoadedModel]) -> list[Finding]:
    """Findings for ids and LoRA adapters' names: each is unique over all models, and no id is a path of the gateway."""
    taken = {model.config.model_id: model.file for model in models}
    findings: list[Finding] = []
    for model in models:
        if model.config.slug in RESERVED:
            taken_paths = ", ".join(sorted(RESERVED))
            message = (
                f"found {model.config.model_id!r}, which is a path of the gateway; choose any name except {taken_paths}"
            )
            findings.append(model.document.finding(("engine_config", "model_id"), message))
        for index, adapter in enumerate(model.config.engine_config.lora):
            path = ("engine_config", "lora", index, "name")
            if adapter.name in taken:
                message = (
                    f"found {adapter.name!r}, which {taken[adapter.name]} already uses; "
                    "clients choose a model by this name, so give the adapter another"
                )
                findings.append(model.document.finding(path, message))
            taken.setdefault(adapter.name, model.file)
    return findings
