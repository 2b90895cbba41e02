"""Serve applications, weights, bucket and routes: what each model becomes behind the gateway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infra.planning.plan import (
    GATEWAY_PATHS,
    BucketPlan,
    CodeArtifact,
    GatewayPlan,
    MirrorPlan,
    Route,
    ServeApplication,
)
from infra.stack import LoadedStack
from serving.config.errors import Finding
from serving.config.generate_kwargs import default_max_tokens
from serving.config.load import LoadedModel
from serving.config.schema import ModelConfig
from serving.config.serve_options import replica_bounds

IMPORT_PATH = "serving.app:build"


def mirror_plan(stack: LoadedStack, model: ModelConfig) -> MirrorPlan:
    """Where the weights come from, and the prefix of the stack's own copy if it keeps one."""
    engine = model.engine_config
    source = stack.config.mirror.sources.get(engine.weights_id, engine.weights_id)
    if engine.s3_mirror_config is not None and engine.s3_mirror_config.bucket_uri:
        return MirrorPlan(engine.s3_mirror_config.bucket_uri, engine.revision, None)
    if engine.gcs_mirror_config is not None:
        return MirrorPlan(engine.gcs_mirror_config.bucket_uri, engine.revision, None)
    on_node = engine.weights_id.startswith("/") and source == engine.weights_id
    mirrored = stack.config.mirror.create and not on_node
    return MirrorPlan(source, engine.revision, f"models/{model.slug}" if mirrored else None)


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
    """The stack's bucket: it keeps the code of the applications, and the weights."""
    config = stack.config
    findings: list[Finding] = []
    name = config.mirror.bucket
    if name is None and config.target == "local":
        name = f"modelfleet-{stack.name}"
    elif name is None and config.account_id:
        name = f"modelfleet-{stack.name}-{config.account_id}"
    elif name is None:
        message = "has no name; give `bucket`, or `modelfleet:accountId` for the default modelfleet-<stack>-<accountId>"
        findings.append(stack.finding(("mirror",), message))
    read_only = {
        uri.removeprefix("s3://").rstrip("/")
        for model in models
        if (mirror := model.config.engine_config.s3_mirror_config) is not None and (uri := mirror.bucket_uri)
    }
    return BucketPlan(
        config.mirror.create, name, config.cluster.deletion_protection, tuple(sorted(read_only))
    ), findings


def gateway_plan(stack: LoadedStack, models: Sequence[LoadedModel]) -> GatewayPlan:
    """Routes by model id, LoRA adapters' names with their model's."""
    gateway = stack.config.gateway
    routes = tuple(
        Route(
            model_id=config.model_id,
            slug=config.slug,
            model_ids=(config.model_id, *(adapter.name for adapter in config.engine_config.lora)),
            description=config.engine_config.model_description,
            scales_to_zero=replica_bounds(config)[0] == 0,
            answer_tokens=_answer_tokens(config),
        )
        for config in sorted((m.config for m in models), key=lambda c: c.model_id)
    )
    return GatewayPlan(
        routes=routes,
        auth=stack.config.auth,
        requests_per_minute=gateway.requests_per_minute,
        concurrent_requests=gateway.concurrent_requests,
        max_body_mib=gateway.max_body_mib,
        timeout_s=gateway.timeout_s,
        replicas=gateway.replicas,
        hostname=gateway.hostname,
        tls_secret=gateway.tls_secret,
        tokens_per_minute=gateway.tokens_per_minute,
    )


def _answer_tokens(model: ModelConfig) -> int:
    """What an answer may have when its request does not say: the file's max_tokens, else the model's length."""
    default = default_max_tokens(model.engine_config.generation.generate_kwargs)
    return model.engine_config.max_total_tokens if default is None else default


def name_findings(models: Sequence[LoadedModel]) -> list[Finding]:
    """Names that clients use are unique over all models: ids, and LoRA adapters' names; none is a gateway's path."""
    taken = {model.config.model_id: model.file for model in models}
    findings: list[Finding] = []
    for model in models:
        if model.config.slug in GATEWAY_PATHS:
            taken_paths = ", ".join(sorted(GATEWAY_PATHS))
            message = f"found {model.config.model_id!r}, a path of the gateway; any name but {taken_paths} will do"
            findings.append(model.document.finding(("engine_config", "model_id"), message))
        for index, adapter in enumerate(model.config.engine_config.lora):
            path = ("engine_config", "lora", index, "name")
            if adapter.name in taken:
                message = (
                    f"found {adapter.name!r}, which {taken[adapter.name]} has too; clients tell models by these names"
                )
                findings.append(model.document.finding(path, message))
            taken.setdefault(adapter.name, model.file)
    return findings
