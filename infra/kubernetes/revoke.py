"""Takes API keys out of a cluster's gateway without a Pulumi run, which makes the same of the same keys afterwards."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from modelfleet.infra.gateway import keys_id, without
from modelfleet.infra.kubernetes.api import Api, ApiError
from modelfleet.infra.kubernetes.manifests.gateway import KEY_MAP, KEYS_ID
from modelfleet.infra.kubernetes.names import GATEWAY, GATEWAY_KEYS

#: Seconds until all pods are new: one more starts at a time, in seconds where its image is on the node.
ROLLED_S: Final = 180
LOOK_EVERY_S: Final = 1.0
#: Another run may change the Secret at the same moment; the API server then refuses, and we look again.
TRIES: Final = 3


@dataclass(frozen=True)
class Revoked:
    """How many secrets ended (None without a gateway), and whether all pods that take new connections know it."""

    secrets: int | None
    rolled: bool


def revoke(api: Api, namespace: str, names: Collection[str], *, pause: Callable[[float], None] = time.sleep) -> Revoked:
    """Take keys out of the Secret and have the gateway's Deployment roll its pods; waits `ROLLED_S` at most for them.

    The Secret comes first, so that whichever pod starts next does not know them. A pod that ends answers as before
    until its stop signal, which `_leave_s` waits for. From then on it finishes its streams, and answers one more
    request at most on a connection that was idle. Raises `ApiError` and `Unreachable`.
    """
    found = _take_out(api, namespace, names)
    if found is None or api.get("apps/v1", "Deployment", GATEWAY, namespace) is None:
        return Revoked(None, rolled=True)
    key_map, ended = found
    template = {"metadata": {"annotations": {KEYS_ID: keys_id(key_map)}}}
    api.merge("apps/v1", "Deployment", GATEWAY, namespace, {"spec": {"template": template}})
    for _ in range(int(ROLLED_S / LOOK_EVERY_S)):
        deployment = api.get("apps/v1", "Deployment", GATEWAY, namespace) or {}
        if _rolled(deployment):
            pause(_leave_s(deployment))
            return Revoked(ended, rolled=True)
        pause(LOOK_EVERY_S)
    return Revoked(ended, rolled=False)


def _take_out(api: Api, namespace: str, names: Collection[str]) -> tuple[str, int] | None:
    """The key map without them, and how many secrets that took out; None where there is no key map."""
    for left in reversed(range(TRIES)):
        secret = api.get("v1", "Secret", GATEWAY_KEYS, namespace)
        there = (secret or {}).get("data", {}).get(KEY_MAP)
        if there is None:
            return None
        key_map, gone = without(base64.b64decode(there).decode(), names)
        if not gone:
            return key_map, 0
        path, new = f"/data/{KEY_MAP}", base64.b64encode(key_map.encode()).decode()
        changes = [{"op": "test", "path": path, "value": there}, {"op": "replace", "path": path, "value": new}]
        try:
            api.patch_parts("v1", "Secret", GATEWAY_KEYS, namespace, changes)
        except ApiError as error:
            if left and error.code in (409, 422):
                continue
            raise
        return key_map, len(gone)
    raise AssertionError("the last try returns or raises")


def _leave_s(deployment: dict[str, Any]) -> int:
    """Seconds between the decision to end a pod and its stop signal: what its first process sleeps (`preStop`)."""
    containers = deployment["spec"]["template"]["spec"]["containers"]
    (hook,) = [one["lifecycle"]["preStop"]["exec"]["command"] for one in containers if one["name"] == GATEWAY]
    return int(hook[1])


def _rolled(deployment: dict[str, Any]) -> bool:
    """Whether every pod is of the last template and ready; old ones may still finish their streams."""
    status, wanted = deployment.get("status", {}), deployment.get("spec", {}).get("replicas", 1)
    seen = status.get("observedGeneration", 0) >= deployment.get("metadata", {}).get("generation", 1)
    new, ready = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    return bool(seen and new == status.get("replicas", 0) == wanted and ready >= wanted)
