"""`aws:codebuild/project:Project`."""

from __future__ import annotations

from typing import Any

from modelfleet.infra.provider import Call, Made, Props, ResourceDef
from tools.standin.aws.making import as_tags, client, from_tags, live_tags, region
from tools.standin.aws.session import Aws

#: Inputs that are called the same in the API, beside the tags.
_SAME = ("artifacts", "description", "environment", "serviceRole", "source")
_OTHERWISE = {"buildTimeout": "timeoutInMinutes", "queuedTimeout": "queuedTimeoutInMinutes"}


def _request(call: Call[Aws], inputs: Props) -> Props:
    logs = ((inputs.get("logsConfig") or {}).get("cloudwatchLogs")) or {}
    return {
        "name": inputs["name"],
        **{key: inputs[key] for key in _SAME if inputs.get(key) is not None},
        **{key: inputs[name] for name, key in _OTHERWISE.items() if inputs.get(name) is not None},
        **({"logsConfig": {"cloudWatchLogs": {"status": "ENABLED", **logs}}} if logs else {}),
        "tags": as_tags(call.session.tags(inputs), "key", "value"),
    }


def _create(call: Call[Aws], inputs: Props) -> Made:
    made = client(call, "codebuild", inputs).create_project(**_request(call, inputs))["project"]
    outputs = {"arn": made["arn"], "region": region(call, inputs), "tagsAll": call.session.tags(inputs)}
    return Made(made["arn"], outputs)


def _find(call: Call[Aws], name: str, state: Props) -> Any:
    found = client(call, "codebuild", state).batch_get_projects(names=[name])["projects"]
    return found[0] if found else None


def _read(call: Call[Aws], id: str, state: Props) -> Props | None:
    name = id.rpartition("/")[2]
    found = _find(call, name, state)
    if found is None:
        return None
    live = {key: found[key] for key in _SAME if key in found}
    live |= {name: found[key] for name, key in _OTHERWISE.items() if key in found}
    if logs := (found.get("logsConfig") or {}).get("cloudWatchLogs"):
        live["logsConfig"] = {"cloudwatchLogs": logs}
    return {**state, "name": name, **live, **live_tags(call, state, from_tags(found["tags"], "key", "value"))}


def _update(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    client(call, "codebuild", inputs).update_project(**_request(call, inputs))
    return {"tagsAll": call.session.tags(inputs)}


PROJECT = ResourceDef(
    token="aws:codebuild/project:Project",
    inputs=frozenset({*_SAME, *_OTHERWISE, "logsConfig", "name", "region", "tags"}),
    required=frozenset({"artifacts", "environment", "name", "serviceRole", "source"}),
    outputs=frozenset({"arn", "region", "tagsAll"}),
    # terraform-provider-aws internal/service/codebuild/project.go
    force_new=frozenset({"name", "region"}),
    delete_before_replace=True,
    create=_create,
    read=_read,
    update=_update,
    delete=lambda call, id, state: client(call, "codebuild", state).delete_project(name=id.rpartition("/")[2]),
)

RESOURCES = (PROJECT,)
