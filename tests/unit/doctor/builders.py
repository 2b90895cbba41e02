"""Evidence and a stack's names for tests of the doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from modelfleet.doctor.diagnose import Cause, diagnose
from modelfleet.doctor.evidence import Evidence, Layer
from modelfleet.doctor.rules import default_rules

RECORDS: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "recorded.yaml").read_text())
OF_MODELS = ("application", "deployment", "log", "job-log")


class Names:
    """A stack `prod` in which every key is in line 7."""

    namespace = "modelfleet-prod"
    mirror_namespace = "modelfleet-prod-mirror"

    def model_id(self, slug: str) -> str:
        return slug.replace("--", "/")

    def place(self, key: str, slugs: tuple[str, ...]) -> tuple[str, int, str]:
        return (f"models/{slugs[0]}.yaml", 7, key) if slugs else ("stacks/Pulumi.prod.yaml", 7, key)


def evidence(kind: str, text: str, *, models: tuple[str, ...] | None = None, **more: Any) -> Evidence:
    """A fact; those about applications are about org/model."""
    about = models if models is not None else ("org--model",) if kind in OF_MODELS else ()
    return Evidence(**{"layer": Layer.SERVE, "object": "the object", **more}, kind=kind, text=text, models=about)


def recorded(record: dict[str, Any]) -> Evidence:
    """The evidence of a record."""
    more = {key: record[key] for key in ("object",) if key in record}
    models = tuple(record["models"]) if "models" in record else None
    layer = Layer(record.get("layer", "serve"))
    return evidence(record["kind"], record["text"], models=models, layer=layer, **more)


def judged(*facts: Evidence, model: str | None = None) -> list[Cause]:
    """What the rules say of these facts in stack prod."""
    return diagnose(default_rules(), facts, Names(), "prod", model)
