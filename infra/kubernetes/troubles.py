"""Why a stack does not become ready, in words that say what to do; pure functions over its objects.

A run waits up to 90 minutes for its models, because nodes and weights take that long. What no waiting mends is said at
once: an image that is not there, a Secret that is missing, a copy of weights that failed, a model that cannot start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelfleet.infra.kubernetes.json_log import as_text
from modelfleet.infra.names import PLACEHOLDER_LABEL

Manifest = dict[str, Any]

#: The kubelet's reasons for a container that waits, and the way out of each. Time mends none of them, but a registry
#: may be away for a moment (kubernetes/kubernetes `pkg/kubelet/images/types.go`, `pkg/kubelet/kuberuntime`).
FINAL: Final = {
    **dict.fromkeys(
        ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"),
        "push the image where the nodes can pull it, or name another",
    ),
    "CreateContainerConfigError": "make what its message names, in the pod's namespace",
    "CreateContainerError": "see its message",
    "RunContainerError": "see its message",
}
#: Ray Serve's word for an application that it does not try again (`ray.serve.schema.ApplicationStatus`).
DEPLOY_FAILED: Final = "DEPLOY_FAILED"
RUNNING: Final = "RUNNING"
CRASHING: Final = "CrashLoopBackOff"
#: Label of a Job's pods.
JOB: Final = "batch.kubernetes.io/job-name"
#: A pod's fields with containers, and those of its status.
_KINDS: Final = {"initContainers": "initContainerStatuses", "containers": "containerStatuses"}


@dataclass(frozen=True)
class Trouble:
    """What keeps one object from being ready. `final`: waiting does not help."""

    name: str
    sentence: str
    final: bool


def troubles(pods: Sequence[Manifest], events: Iterable[Manifest] = ()) -> list[Trouble]:
    """What is wrong with these pods now, in their order; `events` are those of their namespace."""
    found = [trouble for pod in pods for trouble in _of(pod)]
    starting = {pod["metadata"]["name"] for pod in pods if pod.get("status", {}).get("phase") == "Pending"}
    mounts = (one for one in events if one.get("reason") == "FailedMount")
    for name, message in {one["involvedObject"]["name"]: one.get("message", "") for one in mounts}.items():
        if name in starting:
            found.append(Trouble(name, f"pod {name} waits for a volume{_sentence(message)}", "not found" in message))
    return found


def failed_jobs(jobs: Iterable[Manifest], pods: Sequence[Manifest] = ()) -> list[Trouble]:
    """Jobs whose last try failed, and those that are not tried again, with the last words of a pod of theirs."""
    causes = {
        pod["metadata"]["labels"][JOB]: _ended(state["terminated"])
        for pod in pods
        if JOB in pod["metadata"].get("labels", {}) and pod.get("status", {}).get("phase") == "Failed"
        for state in (one.get("state", {}) for one in pod["status"].get("containerStatuses", []))
        if "terminated" in state
    }
    found = []
    for job in jobs:
        name, conditions = job["metadata"]["name"], job.get("status", {}).get("conditions", [])
        given_up = [one for one in conditions if (one["type"], one["status"]) == ("Failed", "True")]
        where = job["metadata"].get("namespace", "default")
        log = f"`kubectl -n {where} logs job/{name}` has its log"
        cause = f"a try ended with {causes[name]}" if name in causes else ""
        if given_up:
            said = _sentence("; ".join(filter(None, (given_up[0].get("message", "").rstrip("."), cause))))
            way = f"{log}; to run it again, delete it and run `modelfleet up`"
            found.append(Trouble(name, f"Job {name} failed{said}; {way}", True))
        elif cause and not any(one["type"] == "Complete" for one in conditions):
            found.append(Trouble(name, f"Job {name} is tried again: {cause}; {log}", False))
    return found


def failed_models(ray_services: Iterable[Manifest]) -> list[Trouble]:
    """Serve applications that will not start, with the last line of what Serve says; those of both Ray clusters."""
    found = {}
    for service in ray_services:
        for key in ("activeServiceStatus", "pendingServiceStatus"):
            applications = service.get("status", {}).get(key, {}).get("applicationStatuses") or {}
            for name, state in applications.items():
                if state.get("status") == DEPLOY_FAILED:
                    lines = [line.strip() for line in state.get("message", "").splitlines() if line.strip()]
                    found[name] = Trouble(
                        name, f"model {name} cannot start{_sentence(lines[-1] if lines else '')}", True
                    )
    return list(found.values())


def wanted_pods(pods: Sequence[Manifest], ray_services: Sequence[Manifest]) -> list[Manifest]:
    """The pods without those of Ray clusters that no RayService wants any more: they may live on for an hour.

    And without placeholders, which may wait for days: a worker runs meanwhile.
    """
    status = [service.get("status", {}) for service in ray_services]
    keys = ("activeServiceStatus", "pendingServiceStatus")
    wanted = {one.get(key, {}).get("rayClusterName") for one in status for key in keys}
    known = [pod for pod in pods if PLACEHOLDER_LABEL not in pod["metadata"].get("labels", {})]
    clusters = [pod["metadata"].get("labels", {}).get("ray.io/cluster") for pod in known]
    return [pod for pod, cluster in zip(known, clusters, strict=True) if cluster is None or cluster in wanted]


def still_to_do(service: Manifest | None) -> str | None:
    """What KubeRay has left of the stack's last change; None when its models run as the files say.

    Pulumi waits for the condition Ready alone, which a live RayService has all the time.
    """
    if service is None:
        return "there is no RayService"
    status, generation = service.get("status", {}), service["metadata"]["generation"]
    conditions = {one["type"]: one for one in status.get("conditions", [])}
    ready = conditions.get("Ready", {})
    applications = status.get("activeServiceStatus", {}).get("applicationStatuses") or {}
    waiting = sorted(name for name, one in applications.items() if one.get("status") != RUNNING)
    if status.get("observedGeneration", 0) < generation:
        return "the operator has not seen the change yet"
    if ready.get("status") != "True":
        return f"the RayService is not ready{_sentence(ready.get('message', ''))}"
    if conditions.get("UpgradeInProgress", {}).get("status") == "True":
        return "a new Ray cluster starts beside the old one, which serves meanwhile"
    return f"not running yet: {', '.join(waiting)}" if waiting else None


def _of(pod: Manifest) -> Iterator[Trouble]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if status.get("reason") == "Evicted":
        yield Trouble(name, f"pod {name} was evicted{_sentence(status.get('message', ''))}", False)
    images = {one["name"]: one["image"] for kind in _KINDS for one in pod["spec"].get(kind, [])}
    for container in (one for kind in _KINDS for one in status.get(_KINDS[kind], [])):
        waiting = container.get("state", {}).get("waiting", {})
        reason = waiting.get("reason", "")
        where = f"pod {name}, container {container['name']}"
        if reason in FINAL:
            image = f" (image {images.get(container['name'])})" if "Image" in reason else ""
            said = _sentence(waiting.get("message", ""))
            yield Trouble(name, f"{where}: {reason}{image}{said}; {FINAL[reason]}", True)
        elif reason == CRASHING:
            log = f"`kubectl logs --previous {name} -c {container['name']}` has its log"
            last = container.get("lastState", {}).get("terminated", {})
            ended = f"ended {container.get('restartCount', 0)} times, last with {_ended(last)}"
            yield Trouble(name, f"{where}: {ended}; {log}", False)
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield Trouble(name, f"pod {name} waits for a node{_sentence(condition.get('message', ''))}", False)


def _ended(terminated: Manifest) -> str:
    """How a container ended, with the last line that it wrote."""
    text = as_text(terminated.get("message", ""), heads=False)
    said = [line.strip() for line in text.splitlines() if line.strip()]
    how = f"{terminated.get('reason', 'Error')}, exit code {terminated.get('exitCode', '?')}"
    return how + _sentence(said[-1] if said else "")


def _sentence(message: str) -> str:
    """A message as the rest of a sentence, on one line."""
    said = " ".join(message.split()).rstrip(".")
    return f": {said}" if said else ""
