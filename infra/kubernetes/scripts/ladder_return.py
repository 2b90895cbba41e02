"""Moves workers back to an earlier rung of their pool's ladder once EC2 gives a node there, without a cut request.

For a worker that has run on a later rung for `after_s`, it makes a placeholder: a pod of low priority that takes a
whole node and may be on an earlier rung only. cluster-autoscaler asks EC2 for that node as often as for any waiting
pod, so an attempt costs nothing. When the placeholder runs, there is a node with the image on it, and one worker moves:
its name in `workersToDelete` has KubeRay end it and make its successor at once (1.6.2 `reconcilePods`: those that it
deletes do not count). The successor takes the placeholder's node; the old pod's preStop hook (`drain.py`) holds it
until its last request is answered.

Mounted from a ConfigMap, run by the image's Python; needs nothing of this project. What there is to do is in the JSON
file of its one argument.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TURN_SECONDS = 15.0
TIMEOUT_SECONDS = 30.0
#: A placeholder that has a node and does not run for so long never will: its image or its node is at fault.
STUCK_SECONDS = 1800.0
#: No other is asked for so soon after one that was in vain: its node costs, and would fail the same way.
PAUSE_SECONDS = 1800.0
GROUP, CLUSTER, KIND = "ray.io/group", "ray.io/cluster", "ray.io/node-type"
#: Annotation of a placeholder: how many rungs, from the first on, it may be on.
RUNGS = "modelfleet.dev/rungs"

Json = dict[str, Any]


@dataclass(frozen=True)
class Action:
    """`ask` makes a placeholder for the first `rungs` rungs, `forget` deletes pod `name`, `move` ends worker `name`.

    After `pause` the pool does not ask for `PAUSE_SECONDS`.
    """

    what: Literal["ask", "forget", "move"]
    name: str = ""
    rungs: int = 0
    pause: bool = False


def decide(ladder: Json, nodes: Sequence[Json], pods: Sequence[Json], now: float) -> list[Action]:
    """What to do about one pool. `nodes` are the pool's, `pods` the namespace's, `now` is seconds since 1970."""
    rungs = {node["metadata"]["name"]: _rung(ladder, node) for node in nodes}
    workers = [pod for pod in pods if _labels(pod).get(GROUP) == ladder["pool"] and _labels(pod).get(KIND) == "worker"]
    held = [pod for pod in pods if _labels(pod).get(ladder["label"]) == ladder["pool"] and not _ends(pod)]
    forget = [Action("forget", pod["metadata"]["name"], pause=_in_vain(pod, now)) for pod in held]
    late = sorted(
        (rung, now - since, pod["metadata"]["name"])
        for pod in workers
        if not _ends(pod) and (since := _placed(pod)) is not None and now - since >= ladder["after_s"]
        if (rung := rungs.get(pod["spec"].get("nodeName"))) is not None and rung > 0
    )
    if not late:
        return forget
    worst, _, worker = late[-1]
    # One at a time: while a worker comes or goes, what it leaves or takes is not known.
    settled = not any(_ends(pod) or _placed(pod) is None for pod in workers)
    if not held:
        return [Action("ask", rungs=worst)] if settled else []
    placeholder, *more = held
    place = placeholder["spec"].get("nodeName")
    if more or _in_vain(placeholder, now) or _ended(placeholder) or (place is None and _asked(placeholder) != worst):
        return forget
    if place is None or not settled or not _runs(placeholder):
        return []
    here = rungs.get(place)
    if here is None or here >= worst:
        return forget
    # The successor would take a node that is free before it takes the placeholder's. The autoscaler removes free nodes.
    # It takes none that is cordoned or not Ready, and such a node may stay for days.
    taken = {pod["spec"].get("nodeName") for pod in [*workers, placeholder]}
    free = [rungs[name] for node in nodes if (name := node["metadata"]["name"]) not in taken and _takes_pods(node)]
    if any(rung is not None and rung > here for rung in free):
        return []
    return [Action("move", worker)]


def _labels(thing: Json) -> Json:
    return dict(thing["metadata"].get("labels") or {})


def _rung(ladder: Json, node: Json) -> int | None:
    """The rung that gave a node, counted from 0; None for a node of none."""
    own = _labels(node).items()
    return next((index for index, rung in enumerate(ladder["rungs"]) if own >= rung["labels"].items()), None)


def _takes_pods(node: Json) -> bool:
    """Whether the scheduler gives a node new pods."""
    conditions = {one["type"]: one["status"] for one in node.get("status", {}).get("conditions") or ()}
    return conditions.get("Ready") == "True" and not node.get("spec", {}).get("unschedulable")


def _in_vain(placeholder: Json, now: float) -> bool:
    """Whether it got a node and then ended, or did not run for `STUCK_SECONDS`."""
    placed = _placed(placeholder)
    if placed is None or _runs(placeholder):
        return False
    return _ended(placeholder) or now - placed >= STUCK_SECONDS


def _ends(pod: Json) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _ended(pod: Json) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _runs(pod: Json) -> bool:
    return bool(pod.get("status", {}).get("phase") == "Running")


def _asked(placeholder: Json) -> int:
    return int((placeholder["metadata"].get("annotations") or {}).get(RUNGS, 0))


def _placed(pod: Json) -> float | None:
    """When a pod got its node, in seconds since 1970; None while it has none."""
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "True":
            return datetime.fromisoformat(condition["lastTransitionTime"].replace("Z", "+00:00")).timestamp()
    return None


def placeholder(ladder: Json, rungs: int) -> Json:
    """The pod that waits for a node of one of the first `rungs` rungs."""
    pod: Json = json.loads(json.dumps(ladder["placeholder"]))
    pod["metadata"]["annotations"] = {RUNGS: str(rungs)}
    terms = [
        {
            "matchExpressions": [
                {"key": key, "operator": "In", "values": [value]} for key, value in sorted(rung["labels"].items())
            ]
        }
        for rung in ladder["rungs"][:rungs]
    ]
    selector = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    pod["spec"]["affinity"] = {"nodeAffinity": selector}
    return pod


def removal(cluster: Json, group: str, worker: str) -> list[Json]:
    """The JSON patch of a RayCluster that has KubeRay replace a worker; it fails where the cluster has changed."""
    groups = cluster["spec"]["workerGroupSpecs"]
    index = next(number for number, one in enumerate(groups) if one["groupName"] == group)
    names = [*(groups[index].get("scaleStrategy") or {}).get("workersToDelete", ()), worker]
    path = f"/spec/workerGroupSpecs/{index}"
    return [
        # The list is replaced as a whole: a name that Ray's autoscaler has put there since would be lost.
        {"op": "test", "path": "/metadata/resourceVersion", "value": cluster["metadata"]["resourceVersion"]},
        {"op": "test", "path": f"{path}/groupName", "value": group},
        {"op": "add", "path": f"{path}/scaleStrategy", "value": {"workersToDelete": names}},
    ]


class Api:
    """The API server, as the pod's ServiceAccount. Raises OSError for every failure."""

    def __init__(self, server: str, namespace: str, token: Path, authority: Path) -> None:
        self._server, self.namespace, self._token = server, namespace, token
        context = ssl.create_default_context(cafile=str(authority))
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Json:
        """One request; `path` begins with `/api`. The token is read anew: the kubelet renews it."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._token.read_text().strip()}", "Content-Type": kind}
        address = f"{self._server}{path}"  # https, as `main` builds it
        request = urllib.request.Request(address, data=data, headers=headers, method=method)  # noqa: S310
        with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return dict(json.loads(answer.read()))

    def pods(self) -> list[Json]:
        """The namespace's pods."""
        return list(self.call("GET", f"/api/v1/namespaces/{self.namespace}/pods")["items"])

    def nodes(self, labels: Iterable[tuple[str, str]]) -> list[Json]:
        """Nodes with these labels."""
        wanted = "%2C".join(f"{key}%3D{value}" for key, value in labels)
        return list(self.call("GET", f"/api/v1/nodes?labelSelector={wanted}")["items"])

    def clusters(self) -> list[Json]:
        """The namespace's RayClusters."""
        return list(self.call("GET", f"/apis/ray.io/v1/namespaces/{self.namespace}/rayclusters")["items"])


def turn(ladders: Sequence[Json], api: Api, now: float, pauses: dict[str, float]) -> list[str]:
    """One look at each pool, and what it asks for; returns a line for each action.

    `pauses`: until when a pool asks for nothing, in seconds since 1970. It is changed here, and lost with the process.
    """
    said = []
    pods = api.pods()
    for ladder in ladders:
        for action in decide(ladder, api.nodes(sorted(ladder["labels"].items())), pods, now):
            if action.pause:
                pauses[ladder["pool"]] = now + PAUSE_SECONDS
            if action.what == "ask" and now < pauses.get(ladder["pool"], now):
                continue
            if (line := _do(ladder, action, api)) is not None:
                said.append(f"{ladder['pool']}: {line}")
    return said


def _do(ladder: Json, action: Action, api: Api) -> str | None:
    pods = f"/api/v1/namespaces/{api.namespace}/pods"
    names = [rung["name"] for rung in ladder["rungs"]]
    if action.what == "ask":
        api.call("POST", pods, placeholder(ladder, action.rungs))
        return f"asks again for {' or '.join(names[: action.rungs])}: a worker runs on {names[action.rungs]}"
    if action.what == "forget":
        api.call("DELETE", f"{pods}/{action.name}")
        return f"{action.name} was in vain" if action.pause else f"needs {action.name} no longer"
    clusters = api.clusters()
    if len(clusters) != 1:
        return None  # a rollout, whose new cluster begins at the first rung anyway
    name = clusters[0]["metadata"]["name"]
    patch = removal(clusters[0], ladder["pool"], action.name)
    path = f"/apis/ray.io/v1/namespaces/{api.namespace}/rayclusters/{name}"
    api.call("PATCH", path, patch, "application/json-patch+json")
    return f"moves worker {action.name}"


def main(settings: Path) -> None:
    """Look every `TURN_SECONDS`, forever. The file is read anew, for the kubelet renews it."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    namespace = (ACCOUNT / "namespace").read_text().strip()
    api = Api(f"https://{host}:{port}", namespace, ACCOUNT / "token", ACCOUNT / "ca.crt")
    pauses: dict[str, float] = {}
    while True:
        try:
            for line in turn(json.loads(settings.read_text()), api, time.time(), pauses):
                print(line, flush=True)
        except OSError as error:  # the next turn tries again
            print(f"the API server: {error}", file=sys.stderr, flush=True)
        time.sleep(TURN_SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
