"""The Pulumi program: read, plan, build, export. One stack file in, one fleet out."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pulumi

from infra.targets import build
from infra.workspace import make_plan
from serving.config.errors import ModelfleetError

root = Path(pulumi.get_root_directory())
try:
    plan = make_plan(root, pulumi.get_stack())
    for notice in plan.notices:
        pulumi.log.warn(notice.sentence())
    outputs = build(root, plan)
except ModelfleetError as error:
    pulumi.log.error(str(error))
    sys.exit(32)  # tells the language host that the message is all: a RunError adds "exited with non-zero exit code"

pulumi.export("models", [model.model_id for model in plan.models])
pulumi.export("max_usd_per_hour", plan.cost.max_usd_per_hour)
for name, value in outputs.items():
    pulumi.export(name, value)
