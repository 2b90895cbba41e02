"""Model and stack files as the planner gets them, made from a few arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from modelfleet.infra.planning import Plan, plan
from modelfleet.infra.planning.plan import CodeArtifact
from modelfleet.infra.stack import LoadedStack, StackConfig
from modelfleet.serving.config.document import Document, parse_document
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig

CODE = CodeArtifact("0" * 64)
ACCOUNT = "111122223333"


def model(
    model_id: str = "org/model",
    accelerator: str = "L4",
    *,
    workers: int = 1,
    cpus: float = 1,
    replicas: tuple[int, int] = (1, 1),
    strategy: str = "STRICT_PACK",
    actor: Mapping[str, Any] | None = None,
    resources: Mapping[str, float] | None = None,
    fallback: Sequence[Mapping[str, Any]] = (),
    gpus: float = 1,
    deployment: Mapping[str, Any] | None = None,
    lined: bool = True,
    **engine: Any,
) -> LoadedModel:
    """A model file with one accelerator; other keywords go to `engine_config`. Without `lined` it has no lines."""
    named = {f"accelerator_type:{accelerator}": 0.001}
    data = {
        "deployment_config": {
            "autoscaling_config": {"min_replicas": replicas[0], "max_replicas": replicas[1]},
            "ray_actor_options": {"num_cpus": 1, "resources": named, **(actor or {})},
            **(deployment or {}),
        },
        "engine_config": {"model_id": model_id, **engine},
        "scaling_config": {
            "num_workers": workers,
            "num_gpus_per_worker": 0 if accelerator == "CPU" else gpus,
            "num_cpus_per_worker": cpus,
            "placement_strategy": strategy,
            "resources_per_worker": {**named, **(resources or {})},
            **({"fallback": [dict(one) for one in fallback]} if fallback else {}),
        },
    }
    file = f"models/{model_id.replace('/', '--')}.yaml"
    if not lined:
        return LoadedModel(ModelConfig.model_validate(data), Document(file, data, {}))
    document = parse_document(yaml.safe_dump(data, sort_keys=False).encode(), file)
    return LoadedModel(ModelConfig.model_validate(data), document)


def stack(
    *pools: Mapping[str, Any],
    target: str = "eks",
    region: str | None = "us-east-1",
    secrets: Sequence[str] = (),
    **keys: Any,
) -> LoadedStack:
    """A stack file; other keywords are its camelCase keys."""
    keys = {"auth": "none", "accountId": ACCOUNT, "kubernetes": {"image": "registry.example/serving:1"}, **keys}
    keys["cluster"] = {"publicAccessCidrs": ["203.0.113.0/24"], **keys.get("cluster", {})}
    settings = {"models": ["*"], "target": target, "pools": list(pools), **keys}
    config = {
        **({"aws:region": region} if region else {}),
        **{f"modelfleet:{key}": value for key, value in settings.items()},
    }
    document = parse_document(yaml.safe_dump({"config": config}, sort_keys=False).encode(), "stacks/Pulumi.test.yaml")
    return LoadedStack("test", StackConfig.model_validate(settings), region, document, frozenset(secrets))


def pool(name: str = "l4", accelerator: str = "L4", **keys: Any) -> dict[str, Any]:
    """A pool; maxNodes is 8 by default."""
    return {"name": name, "accelerator": accelerator, "maxNodes": 8, **keys}


def planned(models: Sequence[LoadedModel], made: LoadedStack, **keys: Any) -> Plan:
    """The plan; unknown facts about models do not matter here."""
    return plan(models, made, code=CODE, facts=keys.pop("facts", {}), **keys)
