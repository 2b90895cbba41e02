"""Models with goals, and a stack of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.observability import dashboards, rule_groups
from modelfleet.infra.observability.rules import ALERTS
from modelfleet.infra.observability.samples import Look
from modelfleet.infra.observability.top import names
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.facts import catalog_facts
from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig, slug_of
from tests.unit.planning.builders import model, planned, pool, stack

#: What a live stack exported, of the names that queries ask for (`SCRAPES=write`, tests/serving/test_api.py).
SCRAPES = Path(__file__).parent / "scrapes"
#: Two looks at a live stack, for `modelfleet top` (the same test file): `<before|after>-<ray|gateway|keys>.txt`.
TOP = SCRAPES / "top"
KEPT = "HuggingFaceTB/SmolLM2-135M-Instruct"
CHAT = "Qwen/Qwen3-8B"


def with_slo(slo: Mapping[str, Any] | None, *, at_once: float = 8, name: str = CHAT, **engine: Any) -> LoadedModel:
    """A chat model on an L4 with goals; `at_once` is its target_ongoing_requests."""
    data: dict[str, Any] = model(name, "L4", replicas=(1, 2), **engine).document.data
    data["deployment_config"]["autoscaling_config"]["target_ongoing_requests"] = at_once
    if slo is not None:
        data["deployment_config"]["slo"] = dict(slo)
    document = parse_document(yaml.safe_dump(data, sort_keys=False).encode(), f"models/{name.replace('/', '--')}.yaml")
    return LoadedModel(ModelConfig.model_validate(data), document)


def queries(plan: Plan) -> dict[str, str]:
    """Every expression of rules and panels, by where it stands."""
    found = {
        f"{group['name']}: {rule.get('alert') or rule['record']} {rule['labels']}": rule["expr"]
        for group in rule_groups(plan)["groups"]
        for rule in group["rules"]
    }
    return found | {
        f"{file}: {panel['title']} {target['refId']}": target["expr"]
        for file, dashboard in dashboards(plan).items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }


def scraped_names(plan: Plan) -> set[str]:
    """The series that all these ask a scrape for; each stands before its labels.

    But for what only some stacks have (`only` in alerts.yaml): no stack on this machine exports it.
    """
    rows = yaml.safe_load(ALERTS.read_text())["stack"]
    some = {row["alert"] for row in rows if "only" in row}
    asked = [text for where, text in queries(plan).items() if not some & set(where.split())]
    return {name for text in asked for name in series_of(text) if not name.startswith("modelfleet:")}


def series_of(expression: str) -> set[str]:
    """The names of series in PromQL; each stands before its labels."""
    return set(re.findall(r"([a-zA-Z_:][\w:]*)\{", expression))


def watched(*models: LoadedModel, **stack_keys: Any) -> Plan:
    """Their plan, with what the catalog knows about them."""
    facts = catalog_facts((one.config for one in models), default_catalog())
    return planned(models, stack(pool(instanceTypes=["g6.2xlarge"]), **stack_keys), facts=facts)


def with_keys(plan: Plan) -> Plan:
    """The plan of a stack that asks for keys."""
    return replace(plan, gateway=replace(plan.gateway, auth="keys"))


def keep_scrape(name: str, text: str, plan: Plan) -> None:
    """Writes a scrape of a live stack to `scrapes/`, as one of `KEPT`: what queries ask for of the plan's one model."""
    _keep(SCRAPES / f"{name}.txt", text, plan, scraped_names(plan))


def keep_look(moment: str, look: Look, plan: Plan) -> None:
    """Writes the pages of a look at a live stack to `scrapes/top/`, as one of `KEPT`: what `top` reads of them."""
    for one in look.pages:
        _keep(TOP / f"{moment}-{one.place}.txt", one.text, plan, names())


def _keep(path: Path, text: str, plan: Plan, names: Collection[str]) -> None:
    (model,) = plan.models

    def kept(line: str) -> bool:
        whose = re.search(r'(?:application|proxy)="([^"]+)"', line)
        own = whose is None or whose[1] in (model.slug, f"model.{model.slug}")
        return line.partition("{")[0] in names and own

    lines = "".join(f"{line}\n" for line in text.splitlines() if kept(line))
    path.parent.mkdir(exist_ok=True)
    path.write_text(lines.replace(model.slug, slug_of(KEPT)).replace(model.model_id, KEPT))
