"""What happens to nodes and pods: drains, kills and losses, and requests that go on meanwhile."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from modelfleet.infra.kubernetes.api import ApiError
from tests.nodes.fleet import NodesFleet
from tests.nodes.pods import Pods
from tests.waiting import wait_until
from tools.kubernetes.api import WritingApi
from tools.kubernetes.node.machine import CGROUPS
from tools.kubernetes.node.node import Node

_numbers = itertools.count(1)
HEAD = "ray.io/node-type=head"


@dataclass
class Answers:
    """Status codes of requests one after another, `000` with curl's exit code for none, and the longest time, in s."""

    codes: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    def read(self, log: str) -> None:
        """Take what the pod's log has."""
        lines = [line.split() for line in log.splitlines() if len(line.split()) == 3]
        self.codes = [f"{code}, curl {ended}" if ended != "0" else code for code, _, ended in lines]
        self.longest_s = max((float(seconds) for _, seconds, _ in lines), default=0.0)


@contextmanager
def asking(fleet: NodesFleet, pods: Pods, node: int) -> Iterator[Answers]:
    """Requests from a pod on a node while the block runs, each answered before the next."""
    name, answers = f"load-{next(_numbers)}", Answers()
    ask = fleet.question("What is the capital of France?")
    pods.create(
        name,
        f"while true; do {ask} -o /dev/null -w '%{{http_code}} %{{time_total}} %{{exitcode}}\\n'; sleep 0.2; done",
        **on(node),
    )
    wait_until(lambda: "200" in pods.log(name), what="the first answer", seconds=180)
    try:
        yield answers
        seen = len(_log(pods, name).splitlines())
        wait_until(lambda: len(_log(pods, name).splitlines()) > seen + 1, what="a request after it all", seconds=180)
    finally:
        answers.read(_log(pods, name))
        pods.delete(name)


def _log(pods: Pods, name: str) -> str:
    """The pod's log, which its kubelet has to give; that may be the one that starts again."""
    return wait_until(lambda: pods.log(name), what=f"the log of {name}", seconds=60, retry=ApiError)


def workers(fleet: NodesFleet) -> dict[str, str]:
    """The workers that are ready and stay, by the name of their node."""
    pods = fleet.cluster.api.list("v1", "Pod", fleet.namespace, "ray.io/node-type=worker")
    return {
        pod["spec"]["nodeName"]: pod["metadata"]["name"]
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]
        and any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", []))
    }


def restarts(fleet: NodesFleet) -> dict[str, int]:
    """How often each container of the stack was started again."""
    return {
        f"{pod['metadata']['name']}/{one['name']}": one["restartCount"]
        for pod in fleet.cluster.api.list("v1", "Pod", fleet.namespace)
        for one in pod["status"].get("containerStatuses", [])
    }


def node_of(fleet: NodesFleet, selector: str) -> Node:
    """The node of the stack's one pod with these labels."""
    (pod,) = fleet.cluster.api.list("v1", "Pod", fleet.namespace, selector)
    return fleet.cluster.node(pod["spec"]["nodeName"])


def in_head(fleet: NodesFleet, *command: str) -> str:
    """What a command in Ray's head says."""
    (pod,) = fleet.cluster.api.list("v1", "Pod", fleet.namespace, HEAD)
    (container,) = (one for one in pod["status"]["containerStatuses"] if one["name"] == "ray-head")
    found = container["containerID"].rpartition("/")[2]
    run = ["ctr", "--namespace", "k8s.io", "tasks", "exec", "--exec-id", f"asks-{next(_numbers)}", found, *command]
    node = fleet.cluster.node(pod["spec"]["nodeName"])
    return subprocess.run(node.command(*run), check=True, capture_output=True, text=True).stdout


def on(number: int) -> dict[str, Any]:
    """A pod on this node."""
    return {"nodeName": f"node-{number}"}


def cordon(api: WritingApi, node: str, *, off: bool = False) -> None:
    """`kubectl cordon` and `uncordon`."""
    api.merge("v1", "Node", node, None, {"spec": {"unschedulable": None if off else True}})


def drain(api: WritingApi, node: str, *, seconds: float, namespace: str | None = None) -> list[str]:
    """`kubectl drain --ignore-daemonsets --delete-emptydir-data`; returns what budgets said against it.

    With `namespace` only that one's pods, for others may be in the middle of a test.
    """
    cordon(api, node)
    refused: list[str] = []
    waiting = {_key(pod) for pod in _evictable(api, node, namespace)}
    end = time.monotonic() + seconds
    while waiting:
        for space, name, uid in sorted(waiting):
            pod = api.get("v1", "Pod", name, space)
            if pod is None or pod["metadata"]["uid"] != uid:
                waiting.discard((space, name, uid))
            elif "deletionTimestamp" not in pod["metadata"]:
                refused += _evict(api, space, name)
        assert time.monotonic() < end, f"{node} still has {sorted(waiting)} after {seconds:.0f} s"
        time.sleep(1)
    return refused


def _evict(api: WritingApi, namespace: str, name: str) -> list[str]:
    meta = {"name": name, "namespace": namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
    try:
        api.call("post", "v1", "Pod", name, namespace, "/eviction", body=body)
    except ApiError as error:
        if error.code != 429:
            raise
        return [error.message]
    return []


def _evictable(api: WritingApi, node: str, namespace: str | None) -> list[dict[str, Any]]:
    """What runs on a node and may run elsewhere."""
    pods = [pod for pod in api.list("v1", "Pod", namespace) if pod["spec"].get("nodeName") == node]
    owners = [{owner["kind"] for owner in pod["metadata"].get("ownerReferences", [])} for pod in pods]
    return [pod for pod, kinds in zip(pods, owners, strict=True) if "DaemonSet" not in kinds and kinds]


def _key(pod: dict[str, Any]) -> tuple[str, str, str]:
    meta = pod["metadata"]
    return meta["namespace"], meta["name"], meta["uid"]


def kill(node: Node, what: str) -> None:
    """SIGKILL for the processes of a node, its containers' among them, whose command line has this at its start."""
    subprocess.run(node.command("pkill", "-KILL", "-f", f"^{what}"), check=True)


#: A process of the machine joins the container's cgroup (v1) and takes memory there.
_HOG = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); bytearray(1 << 29)"
SPARE_BYTES = 1 << 28


def run_out_of_memory(node: Node, what: str) -> int:
    """Let the kernel end the largest process beside the one whose command line starts so; returns the kernel's count.

    The cgroup's limit comes down to what no file can be taken back for, and something takes that and more.
    """
    find = node.command("sh", "-c", f"cat /proc/$(pgrep -of '^{what}')/cgroup")
    lines = subprocess.run(find, check=True, capture_output=True, text=True).stdout.splitlines()
    (path,) = (line.split(":")[2] for line in lines if line.split(":")[1] == "memory")
    group = CGROUPS / "memory" / path.lstrip("/")
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    limit = group / "memory.limit_in_bytes"
    before = limit.read_text()
    limit.write_text(str(int(stat["total_rss"]) + int(stat["total_shmem"]) + SPARE_BYTES))
    try:
        subprocess.run([sys.executable, "-c", _HOG, group / "cgroup.procs"], check=False)
    finally:
        limit.write_text(before)
    control = dict(line.split() for line in (group / "memory.oom_control").read_text().splitlines())
    return int(control["oom_kill"])
