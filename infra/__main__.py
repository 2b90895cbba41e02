"""The Pulumi program: read, plan, build, export. One stack file in, one fleet out."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pulumi

from infra.workspace import make_plan
from serving.config.errors import ModelfleetError

ROOT = Path(pulumi.get_root_directory())

try:
    plan = make_plan(ROOT, pulumi.get_stack())
except ModelfleetError as error:
    raise pulumi.RunError(str(error)) from None

for notice in plan.notices:
    pulumi.log.warn(notice.sentence())

keys = pulumi.Config("modelfleet").get_secret_object("apiKeys")

if plan.target == "local":
    from infra.local import LocalFleet
    from infra.local.emulator import ensure_emulator

    ensure_emulator(plan.config.local.s3_port)
    folder = ROOT / ".modelfleet" / "local" / plan.stack
    fleet = LocalFleet(plan.stack, plan, folder=folder, api_keys=keys if plan.gateway.auth == "keys" else None)
    pulumi.export("base_url", fleet.base_url)
else:
    raise pulumi.RunError(f"target {plan.target} is not there yet")

pulumi.export("models", [model.model_id for model in plan.models])
pulumi.export("max_usd_per_hour", plan.cost.max_usd_per_hour)
