"""Looks at a stack in its cluster while Pulumi waits for it, and says why something does not start."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any, Final

from modelfleet.cli import output
from modelfleet.infra.kubernetes.api import Api, ApiError, Unreachable
from modelfleet.infra.kubernetes.names import RAY_SERVICE
from modelfleet.infra.kubernetes.troubles import Trouble, failed_jobs, failed_models, still_to_do, troubles, wanted_pods
from modelfleet.infra.planning import Plan

LOOK_EVERY_S: Final = 5.0
#: As long as Pulumi waits for the first models.
ROLLOUT_S: Final = 5400.0
#: How long what time does not mend must last before the run ends: a registry may be away for a moment.
PATIENCE_S: Final = 90.0
#: What can mend itself is said only when it lasts: pods wait a moment for a node or a Secret in every run.
QUIET_S: Final = 20.0


class ClusterWatch:
    """Called again and again; returns the sentence that ends the run, None to go on."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._since: dict[tuple[str, bool], float] = {}
        self._said: set[str] = set()

    def __call__(self) -> str | None:
        """Look once; says each new trouble once. A cluster that does not answer is Pulumi's to report."""
        try:
            found = self._look()
        except (Unreachable, ApiError):
            return None
        now = time.monotonic()
        # Not by sentence: a kubelet says ErrImagePull and ImagePullBackOff in turn.
        self._since = {key: self._since.get(key, now) for key in ((one.name, one.final) for one in found)}
        for one in found:
            lasted = now - self._since[one.name, one.final]
            if one.final and lasted >= PATIENCE_S:
                return one.sentence
            if lasted >= QUIET_S and one.sentence not in self._said:
                self._said.add(one.sentence)
                output.say(f"\n{one.sentence}", "yellow")  # Pulumi's line of dots is still open
        return None

    def wait_for_rollout(self) -> str | None:
        """Wait until the models run as the files say; returns what ends the wait early."""
        end, said, settled = time.monotonic() + ROLLOUT_S, "", 0
        while settled < 2:  # once could be the moment before the operator begins
            if stopped := self():
                return stopped
            if (doing := self._still_to_do()) and doing != said:
                output.say(doing)
            said, settled = doing or "", 0 if doing else settled + 1
            if time.monotonic() > end:
                return f"{said}, after {ROLLOUT_S / 60:.0f} min"
            time.sleep(LOOK_EVERY_S)
        return None

    def _still_to_do(self) -> str | None:
        try:
            with self._connected() as api:
                return still_to_do(api.get("ray.io/v1", "RayService", RAY_SERVICE, self._plan.namespace))
        except (Unreachable, ApiError) as error:
            return str(error)

    def _connected(self) -> closing[Api]:
        settings = self._plan.config.kubernetes
        return closing(Api.from_kubeconfig(settings.kubeconfig, settings.context))

    def _look(self) -> list[Trouble]:
        plan = self._plan
        with self._connected() as api:

            def listed(version: str, kind: str) -> list[dict[str, Any]]:
                where = dict.fromkeys((plan.namespace, plan.mirror_namespace))
                return [found for namespace in where for found in api.list(version, kind, namespace)]

            pods, events = (listed("v1", kind) for kind in ("Pod", "Event"))
            jobs = api.list("batch/v1", "Job", plan.mirror_namespace)
            try:
                services = api.list("ray.io/v1", "RayService", plan.namespace)
            except ApiError as error:
                if error.code != 404:  # the run has not made its definition yet
                    raise
                services = []
        return [*troubles(wanted_pods(pods, services), events), *failed_jobs(jobs, pods), *failed_models(services)]
