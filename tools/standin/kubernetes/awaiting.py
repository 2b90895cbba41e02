"""Waits until an object is ready, by the real plugin's await rules for the kinds that this project makes.

Source: pulumi-kubernetes provider/pkg/await (`pulumi.com/waitFor`, `skipAwait`, `timeoutSeconds` annotations).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from modelfleet.infra.kubernetes.api import Api, Manifest
from modelfleet.infra.provider import Refused

POLL_SECONDS = 0.5
#: Time between two progress lines of a wait; a user's Ctrl-C is noticed at each.
STEP_SECONDS = 2.0
DEFAULT_TIMEOUT_SECONDS = 600.0

Verdict = str | None
"""None means ready; otherwise a text that says what is still missing."""


class NotReady(Exception):
    """The object exists but did not become ready; `reasons` say why."""

    def __init__(self, live: Manifest, reasons: list[str]) -> None:
        self.live, self.reasons = live, reasons
        super().__init__("; ".join(reasons))


def wait_until_ready(api: Api, live: Manifest, seconds: float, step: Callable[[str], None]) -> Manifest:
    """Poll until the object is ready; raises `NotReady` after `seconds`, if it failed for good, or if stopped."""
    annotations = live["metadata"].get("annotations") or {}
    if annotations.get("pulumi.com/skipAwait") == "true":
        return live
    rule = _rule(live, annotations)
    if rule is None:
        return live
    limit = float(annotations.get("pulumi.com/timeoutSeconds") or seconds or DEFAULT_TIMEOUT_SECONDS)
    end, noted = time.monotonic() + limit, time.monotonic()
    while True:
        if failed := _failed(live):
            raise NotReady(live, [failed])
        if (missing := rule(live)) is None:
            return live
        if time.monotonic() > end:
            raise NotReady(live, [f"not ready after {limit:.0f} s: {missing}"])
        if time.monotonic() - noted > STEP_SECONDS:
            noted = time.monotonic()
            try:
                step(f"waiting: {missing}")
            except Refused as stopped:
                raise NotReady(live, [str(stopped)]) from stopped
        time.sleep(POLL_SECONDS)
        meta = live["metadata"]
        found = api.get(live["apiVersion"], live["kind"], meta["name"], meta.get("namespace"))
        if found is None:
            raise NotReady(live, ["something else deleted it"])
        live = found


def wait_until_gone(api: Api, live: Manifest, seconds: float, step: Callable[[str], None]) -> None:
    """Poll until the object is gone; raises `TimeoutError` with its finalizers, or `Refused` if stopped."""
    meta = live["metadata"]
    end, noted = time.monotonic() + (seconds or DEFAULT_TIMEOUT_SECONDS), time.monotonic()
    while True:
        found = api.get(live["apiVersion"], live["kind"], meta["name"], meta.get("namespace"))
        if found is None or found["metadata"].get("uid") != meta.get("uid", found["metadata"].get("uid")):
            return
        finalizers = ", ".join(found["metadata"].get("finalizers") or []) or "none"
        if time.monotonic() > end:
            raise TimeoutError(f"{live['kind']} {meta['name']} still exists; its finalizers: {finalizers}")
        if time.monotonic() - noted > STEP_SECONDS:
            noted = time.monotonic()
            step(f"waiting until it is gone; its finalizers: {finalizers}")
        time.sleep(POLL_SECONDS)


def _rule(live: Manifest, annotations: dict[str, str]) -> Callable[[Manifest], Verdict] | None:
    if wanted := annotations.get("pulumi.com/waitFor"):
        kind, _, rest = wanted.partition("=")
        if kind != "condition":
            raise NotReady(
                live, [f"pulumi.com/waitFor: {wanted!r}: the stand-in knows only condition=<Type>[=<Status>]"]
            )
        name, _, status = rest.partition("=")
        return lambda now: _condition(now, name, status or "True")
    return _RULES.get(live["kind"])


def _condition(live: Manifest, name: str, status: str) -> Verdict:
    found = {c["type"]: c for c in live.get("status", {}).get("conditions") or []}
    if name in found and found[name]["status"] == status:
        return None
    if name not in found:
        return f"condition {name} is not set yet"
    return f"condition {name} is {found[name]['status']}: {found[name].get('message') or found[name].get('reason')}"


def _deployment(live: Manifest) -> Verdict:
    wanted, status = live["spec"].get("replicas", 1), live.get("status", {})
    if status.get("observedGeneration", 0) < live["metadata"]["generation"]:
        return "its controller has not seen it yet"
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    if updated >= wanted and available >= wanted:
        return None
    return f"{updated} of {wanted} pods are new, {available} available"


def _daemon_set(live: Manifest) -> Verdict:
    status = live.get("status", {})
    if status.get("observedGeneration", 0) < live["metadata"]["generation"]:
        return "its controller has not seen it yet"
    wanted, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
    return None if ready >= wanted else f"{ready} of {wanted} pods are ready"


def _job(live: Manifest) -> Verdict:
    return _condition(live, "Complete", "True")


def _definition(live: Manifest) -> Verdict:
    return _condition(live, "Established", "True")


def _namespace(live: Manifest) -> Verdict:
    return None if live.get("status", {}).get("phase") == "Active" else "not active yet"


_RULES: dict[str, Callable[[Manifest], Verdict]] = {
    "Deployment": _deployment,
    "DaemonSet": _daemon_set,
    "Job": _job,
    "CustomResourceDefinition": _definition,
    "Namespace": _namespace,
}


def _failed(live: Manifest) -> str | None:
    """A state from which the object does not recover."""
    conditions: list[dict[str, Any]] = live.get("status", {}).get("conditions") or []
    for condition in conditions:
        if live["kind"] == "Job" and condition["type"] == "Failed" and condition["status"] == "True":
            return f"the Job failed: {condition.get('message') or condition.get('reason')}"
        if condition.get("reason") == "ValidationFailed" and condition["status"] == "False":
            return f"its operator refused it: {condition.get('message')}"
    return None
