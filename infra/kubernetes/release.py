"""`modelfleet:kubernetes:Release`: a new release of the serving code for the live RayService, a few models at a time.

KubeRay gives Serve the whole `serveConfigV2` at once, so this resource writes it in steps, before Pulumi's own update
of the RayService, which then finds what it wants. After each step it waits for the applications of that step.

KubeRay reports them every 2 s (1.6.2 `ServiceDefaultRequeueDuration`), and what it reports beside a new
`observedGeneration` may still be from before it gave Serve the change (`reconcileServe` asks for the states first). So
a state counts when it lasts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Final

import pulumi

from modelfleet.infra.kubernetes.manifests.ray import cluster_parts, live_configs, rebuilt_by, serve_config_text
from modelfleet.infra.kubernetes.names import RAY_SERVICE
from modelfleet.infra.kubernetes.troubles import DEPLOY_FAILED, RUNNING
from modelfleet.infra.planning.plan import Plan
from modelfleet.infra.planning.release import Config, wanted_configs
from modelfleet.infra.provider import Call, Made, PartlyMade, Props, ResourceDef
from modelfleet.infra.rolling import FAILED, Say, Stopped, as_read, never_differs, roll

ID: Final = "release"
#: How long a state must last, in seconds: five of KubeRay's reports.
LASTS_S: Final = 10.0
LOOK_EVERY_S: Final = 2.0
#: How long the models of one step may take, as the first models of a stack; the cluster may have to find a node.
READY_S: Final = 90 * 60.0
#: How long the API server may be away.
PATIENCE_S: Final = 300.0


class Release(pulumi.CustomResource):
    """The resource in a program. `kubeconfig` and `context` are those of the stack's connection."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        kubeconfig: pulumi.Input[str] | None,
        context: str | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "kubeconfig": kubeconfig,
            "context": context,
            "namespace": plan.namespace,
            "code": plan.code.key,
            "cluster": ".".join(cluster_parts(plan)),
            "configs": json.dumps(wanted_configs(plan), sort_keys=True),
            "atOnce": plan.release.at_once,
        }
        super().__init__("modelfleet:kubernetes:Release", name, props, opts)


class LiveService:
    """The applications of the stack's RayService; `api` is `infra.kubernetes.api.Api` or a part of it."""

    def __init__(self, api: Any, namespace: str, say: Say, cluster: str) -> None:
        self._api, self._namespace, self._say, self._cluster = api, namespace, say, cluster

    def configs(self) -> dict[str, Config]:
        """Nothing where a new Ray cluster comes: it starts with the new code, and the live one keeps its own."""
        live = self._service()
        return {} if live is None or rebuilt_by(live, self._cluster.split(".")) else live_configs(live)

    def failed(self) -> set[str]:
        """By KubeRay's report."""
        service = self._service() or {}
        found = service.get("status", {}).get("activeServiceStatus", {}).get("applicationStatuses") or {}
        return {name for name, one in found.items() if one.get("status") in FAILED}

    def apply(self, configs: Sequence[Config]) -> None:
        """A step: these change, and all others stay as they are live."""
        found = live_configs(self._service() or {})
        found |= {one["name"]: one for one in configs}
        text = serve_config_text({"applications": [found[name] for name in sorted(found)]})
        self._api.merge("ray.io/v1", "RayService", RAY_SERVICE, self._namespace, {"spec": {"serveConfigV2": text}})

    def wait(self, names: Sequence[str]) -> Mapping[str, str]:
        """Until each has been running, or has failed, for `LASTS_S`; why, by name, for those that failed."""
        began = answered = time.monotonic()
        since: dict[tuple[str, str], float] = {}
        while True:
            now = time.monotonic()
            try:
                states = self._states(names)
                answered = now
            except _unreachable() as error:
                if now - answered > PATIENCE_S:
                    raise
                self._say(f"the cluster does not answer: {error}")
                states = {}
            words = {name: states.get(name, {}).get("status", "") for name in names}
            since = {(name, word): since.get((name, word), now) for name, word in words.items() if word}
            settled = {
                name: word
                for name, word in words.items()
                if word in (RUNNING, DEPLOY_FAILED) and now - since[name, word] >= LASTS_S
            }
            if len(settled) == len(names):
                return {name: _reason(name, states[name]) for name, word in settled.items() if word == DEPLOY_FAILED}
            doing = ", ".join(f"{name} {words[name] or 'waits for KubeRay'}" for name in names if name not in settled)
            if now - began > READY_S:
                late = f"was not ready after {READY_S / 60:.0f} min"
                return {name: f"{name} {late}" for name in names if settled.get(name) != RUNNING}
            self._say(doing)
            time.sleep(LOOK_EVERY_S)

    def _states(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What KubeRay reports since it saw the last change."""
        service = self._service()
        if service is None:
            return {}
        status = service.get("status", {})
        if status.get("observedGeneration", 0) < service["metadata"]["generation"]:
            return {}
        found = status.get("activeServiceStatus", {}).get("applicationStatuses") or {}
        return {name: found[name] for name in names if name in found}

    def _service(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._api.get("ray.io/v1", "RayService", RAY_SERVICE, self._namespace)
        return found


def _unreachable() -> tuple[type[Exception], ...]:
    from modelfleet.infra.kubernetes.api import ApiError, Unreachable

    return Unreachable, ApiError


def _reason(name: str, state: Mapping[str, Any]) -> str:
    """The last line of what Serve says of the deployment, or of the application."""
    deployments = (state.get("serveDeploymentStatuses") or {}).values()
    said = [*(one.get("message") or "" for one in deployments), state.get("message") or ""]
    lines = [text.strip().splitlines()[-1] for text in said if text.strip()]
    return f"{name} failed to start: {lines[0] if lines else 'Serve gave no reason'}"


def create(call: Call[Props], inputs: Props) -> Made:
    """Takes the code to what runs; nothing on a new stack."""
    _roll(call, inputs)
    return Made(ID, {})


def update(call: Call[Props], id: str, state: Props, inputs: Props) -> Props:
    """Takes the code to what runs."""
    _roll(call, inputs)
    return {}


def read(call: Call[Props], id: str, state: Props) -> Props:
    """The state, with whether all live models have its code; as it is when the cluster does not answer."""
    from modelfleet.infra.kubernetes.api import Api

    try:
        with closing(Api.from_kubeconfig(state.get("kubeconfig"), state.get("context"))) as api:
            return as_read(LiveService(api, state["namespace"], call.step, state["cluster"]), state)
    except _unreachable() as error:
        call.note(f"cannot tell which models have the serving code: {error}")
        return state


def delete(call: Call[Props], id: str, state: Props) -> None:
    """There is nothing to delete."""


def _roll(call: Call[Props], inputs: Props) -> None:
    from modelfleet.infra.kubernetes.api import Api

    began = time.monotonic()

    def say(line: str) -> None:
        call.step(f"{line[:200]} ({time.monotonic() - began:.0f} s)")

    kubeconfig = inputs.get("kubeconfig")
    try:
        with closing(Api.from_kubeconfig(kubeconfig, inputs.get("context"))) as api:
            live = LiveService(api, inputs["namespace"], say, inputs["cluster"])
            roll(live, json.loads(inputs["configs"]), int(inputs["atOnce"]), say)
    except Stopped as error:
        raise PartlyMade(ID, {}, [str(error)]) from error
    except _unreachable() as error:
        raise PartlyMade(ID, {}, [f"a release of the serving code could not be looked at: {error}"]) from error


RELEASE = ResourceDef[Props](
    token="modelfleet:kubernetes:Release",  # noqa: S106 - Pulumi's word for a type
    inputs=frozenset({"kubeconfig", "context", "namespace", "code", "cluster", "configs", "atOnce"}),
    required=frozenset({"namespace", "code", "cluster", "configs", "atOnce"}),
    same=dict.fromkeys(("kubeconfig", "context", "cluster", "configs", "atOnce"), never_differs),
    create=create,
    read=read,
    update=update,
    delete=delete,
)
