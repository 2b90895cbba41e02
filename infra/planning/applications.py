"""Serve applications, weights, bucket and routes: what each model becomes behind the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from modelfleet.infra.names import USAGE
from modelfleet.infra.planning.drafting import draft_source
from modelfleet.infra.planning.gateway_paths import RESERVED
from modelfleet.infra.planning.keys import jwt_plan, key_plans, team_plans
from modelfleet.infra.planning.plan import (
    BucketPlan,
    CodeArtifact,
    Gap,
    GatewayPlan,
    JwtKey,
    MirrorPlan,
    ModelKind,
    Route,
    SealPlan,
    ServeApplication,
)
from modelfleet.infra.planning.schedule import as_argument
from modelfleet.infra.planning.signers import manifest_key_plan, signer_of
from modelfleet.infra.planning.traces import collector_of
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.accelerators import CPU
from modelfleet.serving.config.checkpoint_files import Kind, weights_kind
from modelfleet.serving.config.engine_schema import EngineConfig, LoraAdapter
from modelfleet.serving.config.errors import Finding
from modelfleet.serving.config.generate_kwargs import default_max_tokens
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import GATEWAY_KEYS, queue_per_replica, replica_bounds
from modelfleet.serving.scaling import Schedule

#: Tokens that an answer is charged with where neither file nor facts say how long a model is: that of most models of
#: 2024 and later, 128 Ki.
UNKNOWN_LENGTH = 131_072
IMPORT_PATH = "modelfleet.serving.app:build"


def mirror_plan(stack: LoadedStack, model: ModelConfig, size: int | None = None) -> MirrorPlan:
    """Where the weights come from, and the prefix of the stack's own copy if it keeps one; `size` in bytes."""
    engine = model.engine_config
    source = stack.config.mirror.sources.get(engine.weights_id, engine.weights_id)
    kind, signer = weights_kind(engine.engine_kwargs), signer_of(stack, engine.weights_id)
    if engine.mirror_config is not None and engine.mirror_config.bucket_uri:
        return MirrorPlan(engine.mirror_config.bucket_uri, engine.revision, None, size, kind, signer, engine.weights_id)
    on_node = engine.weights_id.startswith("/") and source == engine.weights_id
    mirrored = stack.config.mirror.create and not on_node and not _straight(stack, model, source)
    prefix = f"models/{model.slug}" if mirrored else None
    return MirrorPlan(source, engine.revision, prefix, size, kind, signer, engine.weights_id)


def _straight(stack: LoadedStack, model: ModelConfig, source: str) -> bool:
    """Whether a replica on this machine's cards loads from the Hub itself: the emulator's bucket is in memory."""
    return stack.config.target.on_this_machine and model.accelerator != CPU and ":" not in source


def other_mirror(stack: LoadedStack, name: str, revision: str | None, kind: Kind, size: int | None) -> MirrorPlan:
    """The stack's copy of a draft, a tokenizer or an adapter; all models that use the same one share it.

    Its prefix is None for a folder on the node, and for a bucket where no Job can copy it.
    """
    source = stack.config.mirror.sources.get(name, name)
    buckets = ("s3://",) if not stack.config.target.on_this_machine else ()
    copied = source.startswith(("wheel:", "file://", *buckets)) or not (source.startswith("/") or "://" in source)
    key = name.replace("://", "--").replace("/", "--") + (f"@{revision}" if revision else "")
    # No model's slug begins like this.
    prefix = f"models/_{kind}/{key}" if stack.config.mirror.create and copied else None
    return MirrorPlan(source, revision, prefix, size, kind, signer_of(stack, name), name)


def draft_mirror(stack: LoadedStack, model: ModelConfig, size: int | None) -> MirrorPlan | None:
    """The copy of a draft with a checkpoint of its own, `size` in bytes."""
    section = model.engine_config.engine_kwargs.get("speculative_config")
    if (source := draft_source(model)) is None or not isinstance(section, Mapping):
        return None
    revision = section.get("revision")
    return other_mirror(stack, source[0], str(revision) if revision else None, "model", size)


def tokenizer_mirror(stack: LoadedStack, model: ModelConfig) -> MirrorPlan | None:
    """The copy of a tokenizer that is not the weights' own."""
    engine = model.engine_config
    name = engine.tokenizer_id or engine.engine_kwargs.get("tokenizer")
    revision = engine.engine_kwargs.get("tokenizer_revision")
    if not isinstance(name, str) or name == engine.weights_id:
        return None
    return other_mirror(stack, name, str(revision) if revision else None, "tokenizer", 0)


def adapter_mirror(stack: LoadedStack, adapter: LoraAdapter) -> MirrorPlan:
    """The copy of an adapter; its bytes are too few to count."""
    return other_mirror(stack, adapter.source, adapter.revision, "adapter", 0)


def all_mirrors(stack: LoadedStack, model: ModelConfig) -> list[MirrorPlan]:
    """All that a replica loads: weights, draft, tokenizer, adapters. What has no prefix is not copied."""
    others = (
        draft_mirror(stack, model, None),
        tokenizer_mirror(stack, model),
        *(adapter_mirror(stack, adapter) for adapter in model.engine_config.lora),
    )
    return [mirror_plan(stack, model), *(one for one in others if one is not None)]


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


def application(
    stack: LoadedStack,
    model: ModelConfig,
    cards: Sequence[Mapping[str, Any]],
    mirror: MirrorPlan,
    bucket: str | None,
    code: CodeArtifact,
    gap: Gap,
    cache_gb: int | None = None,
    seal: SealPlan | None = None,
    schedule: Schedule | None = None,
) -> ServeApplication:
    """One Serve application per model, its file in `args`, its code named by content.

    `cards` are those that its nodes may have where the pool falls back on others; without any `args` lack them.
    `cache_gb` is what all weights on a node may take; None where the plan does not know its disk.

    Its adapters are not in `args`: Serve would restart the model for each that comes or goes. A replica that has slots
    for adapters takes them over from `user_config`.
    """

    def uri(one: MirrorPlan | SealPlan | None) -> str | None:
        return f"s3://{bucket}/{one.prefix}" if one and one.prefix else None

    weights: dict[str, Any] = {"source": mirror.source, "revision": mirror.revision, "mirror": uri(mirror)}
    others = {
        "draft": uri(draft_mirror(stack, model, None)),
        "tokenizer": uri(tokenizer_mirror(stack, model)),
        "cache_gb": cache_gb,
        "seal": uri(seal),
        "manifest_key": key.public if (key := manifest_key_plan(stack)) else None,
        "signers": _signers(stack, model, uri),
    }
    dumped = model.model_dump(mode="json", exclude_unset=True)
    dumped["engine_config"].pop("lora", None)
    # Alerts follow from it and replicas do not, so that an edit restarts nobody.
    dumped.get("deployment_config", {}).pop("slo", None)
    for gateways_own in GATEWAY_KEYS:
        dumped.get("deployment_config", {}).pop(gateways_own, None)
    # The compiled one is beside the model file.
    (dumped.get("deployment_config", {}).get("autoscaling_config") or {}).pop("schedule", None)
    args: dict[str, Any] = {
        "model": dumped,
        "weights": weights | {key: value for key, value in others.items() if value is not None},
        **({"cards": list(cards)} if cards else {}),
        **({"usage": f"s3://{bucket}/{prefix}"} if (prefix := usage_prefix(stack)) and bucket else {}),
        **({"traces": collector.url} if (collector := collector_of(stack)) else {}),
        **({"schedule": as_argument(schedule)} if schedule else {}),
    }
    adapters = [
        {
            **one.model_dump(mode="json", exclude_none=True),
            "mirror": uri(copy),
            **({"signer": copy.signer.fingerprint} if copy.signer and copy.prefix else {}),
        }
        for one in model.engine_config.lora
        for copy in (adapter_mirror(stack, one),)
    ]
    has_slots = model.engine_config.engine_kwargs.get("enable_lora") is True
    return ServeApplication(
        name=model.slug,
        route_prefix=f"/{model.slug}",
        import_path=IMPORT_PATH,
        args=args,
        runtime_env={"working_dir": f"s3://{bucket}/{code.key}"},
        options={"max_surge_percent": gap.surge_percent, "graceful_shutdown_timeout_s": gap.shutdown_s},
        user_config={"lora": adapters} if has_slots else None,
    )


def _signers(
    stack: LoadedStack, model: ModelConfig, uri: Callable[[MirrorPlan | None], str | None]
) -> dict[str, str] | None:
    """Who must have signed each copy but the adapters', by its place; None for nobody."""
    loaded = (mirror_plan(stack, model), draft_mirror(stack, model, None), tokenizer_mirror(stack, model))
    places = ((uri(one), one.signer) for one in loaded if one is not None)
    return {place: signer.fingerprint for place, signer in places if place and signer} or None


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
    adapters = (adapter.source for model in models for adapter in model.config.engine_config.lora)
    sources = (source for source in (*config.mirror.sources.values(), *adapters) if source.startswith("s3://"))
    named_by_models, copied = _prefixes(named), _prefixes(sources)
    return BucketPlan(config.mirror.create, name, protect, named_by_models, copied, usage_prefix(stack)), findings


def usage_prefix(stack: LoadedStack) -> str | None:
    """Where replicas copy their records of usage, in the stack's bucket; None where we give pods no right to write it.

    A bucket may serve several stacks.
    """
    return f"{USAGE}/stack={stack.name}" if stack.config.target.makes_cluster else None


def _prefixes(uris: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({uri.removeprefix("s3://").rstrip("/") for uri in uris}))


def gateway_plan(stack: LoadedStack, models: Sequence[LoadedModel], jwt_keys: Sequence[JwtKey] = ()) -> GatewayPlan:
    """Routes sorted by model id; a route also serves the names of its model's LoRA adapters."""
    routes = tuple(
        Route(
            model_id=config.model_id,
            slug=config.slug,
            model_ids=served_names(config),
            description=config.engine_config.model_description,
            url=config.engine_config.model_url,
            kind=config.engine_config.model_type,
            scales_to_zero=replica_bounds(config)[0] == 0,
            answer_tokens=_answer_tokens(config),
            places=config.deployment_config.max_ongoing_requests,
            queue=queue_per_replica(config),
            hash_balance_factor=_hash_balance_factor(config),
            # In an update each may have a successor; and one of these may end and another begin meanwhile.
            most_replicas=2 * replica_bounds(config)[2] + 2,
        )
        for config in sorted((m.config for m in models), key=lambda c: c.model_id)
    )
    names = [name for route in routes for name in route.model_ids]
    return GatewayPlan(
        routes,
        stack.config.auth,
        stack.config.gateway,
        chat=stack.config.target.on_this_machine,
        keys=key_plans(stack, names),
        teams=team_plans(stack),
        jwt=jwt_plan(stack, names, jwt_keys),
        traces=stack.config.observability.traces is not None,
        side_by_side=1 if stack.config.target.on_this_machine else stack.config.gateway.replicas,
    )


def served_names(model: ModelConfig) -> tuple[str, ...]:
    """The names that clients may put in `model`: its id, then those of its LoRA adapters."""
    return (model.model_id, *(adapter.name for adapter in model.engine_config.lora))


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


def _hash_balance_factor(model: ModelConfig) -> int:
    """0 for a model that keeps no blocks for the next request, or whose file says so."""
    deployment, engine = model.deployment_config, model.engine_config
    keeps = kind_of(engine) == "text" and engine.engine_kwargs.get("enable_prefix_caching") is not False
    wanted = keeps if deployment.prefix_cache_affinity is None else deployment.prefix_cache_affinity
    return deployment.hash_balance_factor if wanted else 0


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
