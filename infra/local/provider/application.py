"""`modelfleet:local:Application`: one Serve application, applied through Ray's Serve REST API.

Serve restarts an application whose code, arguments or runtime environment changed, and only that one.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from modelfleet.infra.local.provider.progress import Progress
from modelfleet.infra.local.provider.ray import logs_folder, serve_api
from modelfleet.infra.local.provider.replica_log import doing
from modelfleet.infra.local.provider.serve_api import NotOurs, ServeApi, Unreachable
from modelfleet.infra.provider import Call, Made, PartlyMade, Props, Refused, ResourceDef

#: Longest silence of a start (one step of it: weights, compilation, a busy machine); the whole may take hours, as a
#: large model's first download does. A resource's own limit is one for the whole.
SILENCE_TIMEOUT_S = 1800.0
GONE_TIMEOUT_S = 120.0
POLL_S = 0.5
#: The dashboard of an overloaded machine may not answer for a while. Ray's own resource watches Ray itself.
PATIENCE_S = 60.0


def create(call: Call[Props], inputs: Props) -> Made:
    """Deploys the application and waits until it runs; takes over one that a killed run left behind."""
    config = json.loads(inputs["config"])
    _deploy(call, inputs, config)
    return Made(config["name"], {})


def update(call: Call[Props], id: str, state: Props, inputs: Props) -> Props:
    """Deploys the changed configuration; Serve leaves the other applications alone."""
    _deploy(call, inputs, json.loads(inputs["config"]))
    return {}


def read(call: Call[Props], id: str, state: Props) -> Props | None:
    """The running configuration; None when Ray or the application is gone, or the application failed for good."""
    try:
        found = serve_api(state).application(id)
    except Unreachable:
        return None
    if found is None or found["status"] in ("DELETING", "NOT_STARTED"):
        return None
    if found["status"] == "DEPLOY_FAILED":
        call.note(f"{id} has failed; it will be deployed again")
        return None
    live: dict[str, Any] | None = found.get("deployed_app_config")
    if live is None or _same(json.loads(state["config"]), live):
        return state
    return {**state, "config": json.dumps(live, sort_keys=True)}


def delete(call: Call[Props], id: str, state: Props) -> None:
    """Removes the application and waits until its replicas have ended."""
    api, progress = serve_api(state), Progress(call.step)
    try:
        if api.application(id) is None:
            return
        _remove(api, id, progress)
    except Unreachable:
        return  # without Ray there is no application


def _deploy(call: Call[Props], inputs: Props, config: dict[str, Any]) -> None:
    api, progress, name = serve_api(inputs), Progress(call.step), config["name"]
    try:
        found = api.application(name)
        if found is not None and found["status"] == "DEPLOY_FAILED":
            _remove(api, name, progress)  # Serve does not try an unchanged configuration again
        api.put(config)
        wait_until_running(api, name, progress, logs_folder(inputs["folder"]), call.timeout_seconds)
    except NotOurs as error:
        raise Refused(str(error)) from error
    except Unreachable as error:
        raise PartlyMade(name, {}, [f"Ray ended during the deployment of {name}: {error}"]) from error
    except NotReady as error:
        raise PartlyMade(name, {}, [str(error)]) from error
    progress.say(f"{name} is ready")


class NotReady(Exception):
    """The application failed, or took too long; the text says why."""


def wait_until_running(api: ServeApi, name: str, progress: Progress, logs: Path, limit_s: float | None) -> None:
    """Waits as long as the application does something new, or `limit_s`. Raises `NotReady` and `Unreachable`."""
    answered = time.monotonic()
    while True:
        try:
            found = api.application(name)
            answered = time.monotonic()
        except Unreachable:
            if time.monotonic() - answered > PATIENCE_S:
                raise
            found = {"status": "DEPLOYING", "message": "waiting for Ray's dashboard"}
        if found is None or found["status"] == "DEPLOY_FAILED":
            raise NotReady(_failure(name, found or {}, logs))
        if found["status"] == "RUNNING":
            return
        does = doing(found, logs)
        progress.say(f"{name}: {does}")
        if limit_s and progress.seconds > limit_s:
            raise NotReady(f"{name} was not ready after {limit_s:.0f} s: {does}")
        if not limit_s and progress.unchanged_seconds > SILENCE_TIMEOUT_S:
            raise NotReady(f"{name} did nothing new for {SILENCE_TIMEOUT_S:.0f} s: {does}")
        time.sleep(POLL_S)


def _remove(api: ServeApi, name: str, progress: Progress) -> None:
    found = api.application(name)
    limit_s = _shutdown_s(found or {}) + GONE_TIMEOUT_S
    api.remove(name)
    until = time.monotonic() + limit_s
    while api.application(name) is not None:
        if time.monotonic() > until:
            raise Refused(f"{name} still has replicas {limit_s:.0f} s after it was deleted; end Ray to remove them")
        progress.say(f"{name}: its replicas are ending, with their last streams")
        time.sleep(POLL_S)


def _shutdown_s(found: dict[str, Any]) -> float:
    """How long its replicas may finish their streams."""
    options = (found.get("deployed_app_config") or {}).get("deployments") or []
    return max((float(one.get("graceful_shutdown_timeout_s") or 0) for one in options), default=0.0)


def _failure(name: str, found: dict[str, Any], logs: Path) -> str:
    """The exception's last line; the traceback is in the replica's log."""
    reasons = [*(d.get("message") or "" for d in found.get("deployments", {}).values()), found.get("message") or ""]
    lines = [line.strip() for reason in reasons if reason for line in reason.splitlines()[-1:]]
    return f"{name} failed to start: {lines[0][:1500] if lines else 'Serve gave no reason'} (logs: {logs / 'serve'})"


def _same(wanted: dict[str, Any], live: dict[str, Any]) -> bool:
    """Whether Serve runs the wanted configuration; it adds its own defaults."""
    mine: list[dict[str, Any]] = wanted.get("deployments", [])
    theirs: list[dict[str, Any]] = live.get("deployments", [])
    plain = all(key in live and live[key] == value for key, value in wanted.items() if key != "deployments")
    return plain and len(mine) == len(theirs) and all(map(_same, mine, theirs))


APPLICATION = ResourceDef[Props](
    token="modelfleet:local:Application",  # noqa: S106 - Pulumi's word for a type
    inputs=frozenset({"folder", "ray", "servePort", "dashboardPort", "config"}),
    required=frozenset({"folder", "ray", "dashboardPort", "servePort", "config"}),
    # A new Ray has none of the old one's applications.
    force_new=frozenset({"folder", "ray", "dashboardPort", "servePort"}),
    create=create,
    read=read,
    update=update,
    delete=delete,
    delete_before_replace=True,
)
