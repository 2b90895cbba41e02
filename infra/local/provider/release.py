"""`modelfleet:local:Release`: a new release of the serving code for the applications that run, a few at a time.

It comes before the applications' own resources, which then find what they want. It makes nothing and keeps nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelfleet.infra.local.provider.application import PATIENCE_S, POLL_S, NotReady, wait_until_running
from modelfleet.infra.local.provider.progress import Progress
from modelfleet.infra.local.provider.ray import logs_folder, serve_api
from modelfleet.infra.local.provider.serve_api import ServeApi, Unreachable, deployed
from modelfleet.infra.planning.release import Config
from modelfleet.infra.provider import Call, Made, PartlyMade, Props, ResourceDef
from modelfleet.infra.rolling import FAILED, Stopped, as_read, never_differs, roll

ID = "release"


class _Serve:
    """Serve through its REST API."""

    def __init__(self, api: ServeApi, logs: Path, progress: Progress, limit_s: float, patience_s: float) -> None:
        self._api, self._logs, self._progress = api, logs, progress
        self._limit_s, self._patience_s = limit_s, patience_s

    def configs(self) -> dict[str, Config]:
        """Raises `Unreachable`: with none of them, all models would take the code at once."""
        began = time.monotonic()
        while True:
            try:
                return deployed(self._api.details())
            except Unreachable:
                if time.monotonic() - began > self._patience_s:
                    raise
            self._progress.say("waiting for Ray's dashboard")
            time.sleep(POLL_S)

    def failed(self) -> set[str]:
        found = self._api.details().get("applications", {})
        return {name for name, one in found.items() if one["status"] in FAILED}

    def apply(self, configs: Sequence[Config]) -> None:
        for config in configs:
            self._api.put(dict(config))

    def wait(self, names: Sequence[str]) -> Mapping[str, str]:
        failed: dict[str, str] = {}
        for name in names:
            try:
                wait_until_running(self._api, name, self._progress, self._logs, self._limit_s)
            except NotReady as error:
                failed[name] = str(error)
        return failed


def create(call: Call[Props], inputs: Props) -> Made:
    """Takes the code to what runs; nothing on a new stack."""
    _roll(call, inputs)
    return Made(ID, {})


def update(call: Call[Props], id: str, state: Props, inputs: Props) -> Props:
    """Takes the code to what runs."""
    _roll(call, inputs)
    return {}


def read(call: Call[Props], id: str, state: Props) -> Props:
    """The state, with whether all live models have its code; as it is where no Ray answers and nothing runs."""
    try:
        return as_read(_serve(call, state, patience_s=0), state)
    except Unreachable:
        return state


def delete(call: Call[Props], id: str, state: Props) -> None:
    """There is nothing to delete."""


def _roll(call: Call[Props], inputs: Props) -> None:
    try:
        roll(_serve(call, inputs), json.loads(inputs["configs"]), int(inputs["atOnce"]), Progress(call.step).say)
    except Stopped as error:
        raise PartlyMade(ID, {}, [str(error)]) from error
    except Unreachable as error:
        raise PartlyMade(ID, {}, [f"Ray ended during a release of the serving code: {error}"]) from error


def _serve(call: Call[Props], inputs: Props, *, patience_s: float = PATIENCE_S) -> _Serve:
    progress, logs = Progress(call.step), logs_folder(inputs["folder"])
    return _Serve(serve_api(inputs), logs, progress, call.timeout_seconds, patience_s)


RELEASE = ResourceDef[Props](
    token="modelfleet:local:Release",  # noqa: S106 - Pulumi's word for a type
    inputs=frozenset({"folder", "servePort", "dashboardPort", "code", "configs", "atOnce"}),
    required=frozenset({"folder", "servePort", "dashboardPort", "code", "configs", "atOnce"}),
    same=dict.fromkeys(("configs", "atOnce", "folder", "servePort", "dashboardPort"), never_differs),
    create=create,
    read=read,
    update=update,
    delete=delete,
)
