"""Pulumi's state of the stack, as `pulumi stack export` prints it, with secrets encrypted: what the last runs made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.subject import Subject
from modelfleet.infra.kubernetes.text import read_json_or_yaml


@dataclass(frozen=True)
class Exported:
    """What the command found: the state's text, or why there is none; `locks` are sentences about runs at work."""

    text: str | None = None
    absent: str | None = None
    unread: str | None = None
    locks: tuple[str, ...] = ()


def read(subject: Subject, export: Callable[[float], Exported], seconds: float) -> Reading:
    """Whether the stack was brought up, what was cut off, and which model files were changed since."""
    found = export(seconds)
    facts = [_fact("lock", sentence) for sentence in found.locks]
    if found.absent is not None:
        return Reading(Layer.STATE, (*facts, _fact("state", found.absent)))
    if found.text is None:
        return Reading(Layer.STATE, tuple(facts), found.unread or "pulumi printed no state")
    try:
        deployment = json.loads(found.text).get("deployment") or {}
    except (ValueError, AttributeError):
        return Reading(Layer.STATE, tuple(facts), "pulumi printed no state that can be read")
    said = state_facts(deployment, subject)
    # What a run that lives has begun is not cut off.
    return Reading(Layer.STATE, (*facts, *(one for one in said if not (found.locks and one.kind == "pending"))))


def state_facts(deployment: Mapping[str, Any], subject: Subject) -> Iterator[Evidence]:
    """Facts of a deployment (`apitype.DeploymentV3` of Pulumi)."""
    time = str((deployment.get("manifest") or {}).get("time", ""))
    resources = [one for one in deployment.get("resources") or [] if one.get("type") != "pulumi:pulumi:Stack"]
    if not resources:
        yield _fact("state", "the state holds no resources: the stack was taken down, or its first run failed", time)
        return
    made = {one.get("urn") for one in resources}
    for pending in deployment.get("pending_operations") or []:
        urn, what = str(pending.get("resource", {}).get("urn", "?")), pending.get("type", "changing")
        # Pulumi keeps a creation that was cut off until somebody clears it, although a later run has made the resource.
        if not (what == "creating" and urn in made):
            yield _fact("pending", f"{what} {urn.rpartition('::')[2]}", time)
    yield from _drift(_deployed(resources), subject, time)


def _drift(deployed: Mapping[str, Any], subject: Subject, time: str) -> Iterator[Evidence]:
    """Models that the last run did not deploy, or deployed from another file."""
    for model in subject.plan.models if subject.plan else ():
        if model.slug not in deployed:
            yield _fact("absent", f"{model.file} is not part of what the last run made", time, (model.slug,))
        elif _model(deployed[model.slug]) != _model(_plain(model.application.as_config())):
            yield _fact("drift", f"{model.file} was changed after the last run", time, (model.slug,))


def _deployed(resources: list[dict[str, Any]]) -> dict[str, Any]:
    """The applications in the state by name: the local target's own resources, or those of a RayService."""
    found = {}
    for one in resources:
        inputs = one.get("inputs") or {}
        if one.get("type") == "modelfleet:local:Application":
            config = json.loads(inputs["config"])
            found[str(config["name"])] = config
        elif isinstance(inputs.get("spec"), Mapping) and "serveConfigV2" in inputs["spec"]:
            config = read_json_or_yaml(str(inputs["spec"]["serveConfigV2"]))
            found |= {application["name"]: application for application in config.get("applications", [])}
    return found


def _model(application: Any) -> Any:
    """The model file as it travels: most of it in `args`, the adapters in `user_config`.

    What else the deployments have follows from other files, too.
    """
    found = application or {}
    adapters = [one.get("user_config") for one in found.get("deployments", [])]
    return _plain([found.get("args", {}).get("model"), adapters])


def _plain(value: Any) -> Any:
    """As JSON has it: the state has no tuples, and 1 for 1.0."""
    return json.loads(json.dumps(value, default=dict))


def _fact(kind: str, text: str, time: str = "", models: tuple[str, ...] = ()) -> Evidence:
    return Evidence(Layer.STATE, kind, "Pulumi's state", text, time, models)
