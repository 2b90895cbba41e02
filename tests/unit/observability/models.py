"""Models with goals, and a stack of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.facts import catalog_facts
from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig
from tests.unit.planning.builders import model, planned, pool, stack

CHAT = "Qwen/Qwen3-8B"


def with_slo(slo: Mapping[str, Any] | None, *, at_once: float = 8, name: str = CHAT, **engine: Any) -> LoadedModel:
    """A chat model on an L4 with goals; `at_once` is its target_ongoing_requests."""
    data: dict[str, Any] = model(name, "L4", replicas=(1, 2), **engine).document.data
    data["deployment_config"]["autoscaling_config"]["target_ongoing_requests"] = at_once
    if slo is not None:
        data["deployment_config"]["slo"] = dict(slo)
    document = parse_document(yaml.safe_dump(data, sort_keys=False).encode(), f"models/{name.replace('/', '--')}.yaml")
    return LoadedModel(ModelConfig.model_validate(data), document)


def watched(*models: LoadedModel, **stack_keys: Any) -> Plan:
    """Their plan, with what the catalog knows about them."""
    facts = catalog_facts((one.config for one in models), default_catalog())
    return planned(models, stack(pool(instanceTypes=["g6.2xlarge"]), **stack_keys), facts=facts)
