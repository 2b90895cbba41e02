"""Projects for the tests: model and stack files on disk, planned by the real planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.workspace import make_plan

#: One pool per accelerator of the model files, T4 with four GPUs per node for tensor parallelism on PCIe.
POOLS = (
    {"name": "t4", "accelerator": "T4", "maxNodes": 2, "instanceTypes": ["g4dn.12xlarge"]},
    {"name": "l4", "accelerator": "L4", "purchase": "spot", "maxNodes": 3, "instanceTypes": ["g6.2xlarge"]},
    {"name": "a10g", "accelerator": "A10G", "maxNodes": 2, "instanceTypes": ["g5.12xlarge"]},
    {"name": "a100", "accelerator": "A100-40G", "maxNodes": 1, "instanceTypes": ["p4d.24xlarge"]},
    {"name": "a100-80", "accelerator": "A100-80G", "maxNodes": 1, "instanceTypes": ["p4de.24xlarge"]},
)
WORKERS = {"T4": 4, "L4": 1, "A10G": 4, "A100-40G": 8, "A100-80G": 8}


def model(
    model_id: str,
    accelerator: str,
    *,
    workers: int | None = None,
    replicas: tuple[int, int] = (1, 1),
    **engine: Any,
) -> dict[str, Any]:
    """A model file's content."""
    gpus = 0 if accelerator == "CPU" else 1
    resource = {f"accelerator_type:{accelerator}": 0.001}
    return {
        "deployment_config": {
            "autoscaling_config": {"min_replicas": replicas[0], "max_replicas": replicas[1]},
            "ray_actor_options": {"num_cpus": 0, "resources": resource},
        },
        "engine_config": {"model_id": model_id, "type": "VLLMEngine", **engine},
        "scaling_config": {
            "num_workers": workers or WORKERS.get(accelerator, 1),
            "num_gpus_per_worker": gpus,
            "num_cpus_per_worker": 1,
            "placement_strategy": "STRICT_PACK",
            "resources_per_worker": resource,
        },
    }


def five_models() -> list[dict[str, Any]]:
    """One model per accelerator; the L4 one scales to three nodes."""
    most = {"T4": 2, "L4": 3, "A10G": 2}
    return [model(f"org/on-{name.lower()}", name, replicas=(1, most.get(name, 1))) for name in WORKERS]


def write_project(
    root: Path,
    models: Sequence[Mapping[str, Any]],
    *,
    stack: str = "dev",
    pools: Sequence[Mapping[str, Any]] = POOLS,
    target: str = "kubernetes",
    **config: Any,
) -> None:
    """Model and stack files under `root`; `config` has further keys of the stack file."""
    (root / "models").mkdir(parents=True, exist_ok=True)
    (root / "stacks").mkdir(exist_ok=True)
    for old in (root / "models").glob("*.yaml"):
        old.unlink()
    for content in models:
        name = content["engine_config"]["model_id"].replace("/", "--")
        (root / "models" / f"{name}.yaml").write_text(yaml.safe_dump(dict(content), sort_keys=False))
    settings = {
        "target": target,
        "models": ["*"],
        "pools": [dict(pool) for pool in pools],
        "auth": "none",
        "accountId": "123456789012",
        "mirror": {"create": True, "bucket": "fleet-mirror"},
        "cluster": {"publicAccessCidrs": ["203.0.113.0/24"]},
        **config,
    }
    document = {
        "config": {"aws:region": "us-west-2", **{f"modelfleet:{key}": value for key, value in settings.items()}}
    }
    (root / "stacks" / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def planned(root: Path, models: Sequence[Mapping[str, Any]], *, stack: str = "dev", **config: Any) -> Plan:
    """The plan of such a project."""
    write_project(root, models, stack=stack, **config)
    return make_plan(root, stack)
