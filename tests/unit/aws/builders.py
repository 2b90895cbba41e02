"""Plans for tests of the AWS half, planned by the real planner from a stack file and model files in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from modelfleet.infra.aws.facts import AccountFacts
from modelfleet.infra.aws.preflight import ADDRESS_QUOTA, NODE_GROUP_QUOTA
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning import Plan, plan
from modelfleet.infra.planning.plan import CodeArtifact
from modelfleet.infra.reading.workspace import read_workspace
from modelfleet.infra.stack import LoadedStack

REGION = "us-west-2"
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/deployer"
ZONES = ("us-west-2a", "us-west-2b", "us-west-2c", "us-west-2d")
EVERYWHERE = frozenset(ZONES)


def planned(root: Path, **stack: Any) -> tuple[Plan, LoadedStack]:
    """The plan of a stack without models; the keyword arguments are keys of the stack file."""
    settings = {
        "models": ["*"],
        "target": "eks",
        "accountId": ACCOUNT,
        "auth": "none",
        "network": {"zones": 2},
        "pools": [{"name": "l4", "accelerator": "L4", "maxNodes": 4, "instanceTypes": ["g6.xlarge"]}],
        **stack,
        "cluster": {"publicAccessCidrs": ["203.0.113.0/24"], **stack.get("cluster", {})},
    }
    for folder in ("models", "stacks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    model = {
        "deployment_config": {"autoscaling_config": {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1}},
        "engine_config": {"model_id": "org/model", "type": "VLLMEngine"},
        "scaling_config": {
            "num_workers": 1,
            "num_gpus_per_worker": 0 if settings["pools"][0]["accelerator"] == "CPU" else 1,
            "num_cpus_per_worker": 1,
            "placement_strategy": "STRICT_PACK",
            "resources_per_worker": {f"accelerator_type:{settings['pools'][0]['accelerator']}": 0.001},
        },
    }
    (root / "models" / "org--model.yaml").write_text(yaml.safe_dump(model))
    config = {"aws:region": REGION, **{f"modelfleet:{key}": value for key, value in settings.items()}}
    (root / "stacks" / "Pulumi.test.yaml").write_text(yaml.safe_dump({"config": config}, sort_keys=False))
    workspace = read_workspace(root, "test")
    return plan(workspace.models, workspace.stack, code=CodeArtifact("0" * 64)), workspace.stack


def facts(**more: Any) -> AccountFacts:
    """An account with ample quotas, in which every zone offers everything."""
    gpus = ("g4dn.xlarge", "g5.xlarge", "g6.xlarge", "g6.12xlarge", "p4d.24xlarge", "p4de.24xlarge")
    offered = (*gpus, "m7i.xlarge", "m7i.2xlarge")
    usual: dict[str, Any] = {
        "account": ACCOUNT,
        "partition": "aws",
        "region": REGION,
        "caller_role_arn": ROLE,
        "zones": ZONES,
        "offerings": dict.fromkeys(offered, EVERYWHERE),
        "quotas": {
            **{quota.code: 10_000.0 for quota in default_catalog().quotas.values()},
            ADDRESS_QUOTA.code: 5.0,
            NODE_GROUP_QUOTA.code: 30.0,
        },
    }
    return AccountFacts(**{**usual, **more})
