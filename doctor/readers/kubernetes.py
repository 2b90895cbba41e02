"""The cluster: nodes, operator, pods, Jobs, events and the RayService, by the official client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.subject import Subject
from modelfleet.infra.kubernetes.api import Api, ApiError, Unreachable
from modelfleet.infra.kubernetes.names import RAY_SERVICE, dns_name
from modelfleet.infra.kubernetes.preflight import missing_nodes, operators
from modelfleet.infra.kubernetes.troubles import RUNNING, failed_jobs, still_to_do, troubles, wanted_pods
from modelfleet.infra.names import AUTOSCALER_NAMESPACE, MODEL_LABEL, POOL_LABEL, STACK_LABEL

Manifest = Mapping[str, Any]
Connect = Callable[[], Api]

#: Conditions of a node that are well when they are True, and those that are well when they are False.
PRESSURES = ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")
#: Reasons of events that tell a fault although their type is Normal: cluster-autoscaler says so of a pod for which it
#: adds no node (kubernetes/autoscaler, `processors/status/eventing_scale_up_processor.go`).
FAULTS = ("NotTriggerScaleUp",)
#: Reasons of events that are over once their pod has a node.
WAITING = ("FailedScheduling", *FAULTS)
#: Reasons of cluster-autoscaler's failures; they are over once no pod waits for a node.
SCALE_UPS = ("ScaleUpFailed", "FailedToScaleUpGroup", "ScaleUpTimedOut")
#: Reasons for pods that a controller could not make (KubeRay's `utils/constant.go`; Kubernetes' `FailedCreateReason`).
#: Its object says whether that is so now, its events do not: the one that tells of success may be dropped, for
#: client-go records 25 of an object and then one in five minutes (`EventSourceObjectSpamFilter`).
NOT_MADE = ("FailedCreate", "FailedToCreateHeadPod", "FailedToCreateWorkerPod")
#: Which kind says so, by the kind of the object that the event is about.
SAID_BY = {"RayCluster": "RayCluster", "ReplicaSet": "Deployment"}
#: KubeRay's reason for a spec that it does not take, and that of the condition Ready then
#: (`utils.InvalidRayServiceSpec`, `rayv1.RayServiceValidationFailed`, KubeRay 1.6.2).
REFUSED_SPEC, NOT_TAKEN = "InvalidRayServiceSpec", "ValidationFailed"
#: The Ray clusters that a RayService serves from, and moves to.
SERVED_BY = ("activeServiceStatus", "pendingServiceStatus")
#: Fields of a Job's status once it has had a pod.
STARTED = ("active", "succeeded", "failed", "conditions")
#: What cluster-autoscaler records its failures on, in its own namespace (`clusterstate/utils/status.go`).
AUTOSCALER_STATUS = "cluster-autoscaler-status"


@dataclass(frozen=True)
class Objects:
    """What the cluster has of a stack; `namespace` is False when there is none of its name."""

    namespace: bool = True
    nodes: tuple[dict[str, Any], ...] = ()
    pods: tuple[dict[str, Any], ...] = ()
    events: tuple[dict[str, Any], ...] = ()
    jobs: tuple[dict[str, Any], ...] = ()
    services: tuple[dict[str, Any], ...] = ()
    clusters: tuple[dict[str, Any], ...] = ()
    deployments: tuple[dict[str, Any], ...] = ()
    #: Kinds that the caller may not list, wholly or in one namespace: none seen is then not none.
    hidden: frozenset[str] = frozenset()
    #: Sentences of the preflight about pools without nodes and about operators.
    lacking: tuple[str, ...] = ()


def read(subject: Subject, connect: Connect, seconds: float) -> Reading:  # noqa: ARG001 - the client has its own limit
    """What is wrong with the stack's objects."""
    try:
        with closing(connect()) as api:
            objects, refused = fetch(api, subject)
    except (Unreachable, ApiError) as error:
        return Reading(Layer.KUBERNETES, unread=str(error))
    return Reading(Layer.KUBERNETES, tuple(facts(objects, subject)), "; ".join(refused) or None)


def fetch(api: Api, subject: Subject) -> tuple[Objects, list[str]]:
    """The objects, and what the cluster refused to show; raises `Unreachable`."""
    namespace, refused, hidden = subject.namespace, list[str](), set[str]()

    def listed(version: str, kind: str, where: str | None, labels: str = "") -> tuple[dict[str, Any], ...]:
        try:
            return tuple(api.list(version, kind, where, labels))
        except ApiError as error:
            if error.code != 404:  # 404: the cluster does not know the kind, so it has none
                refused.append(f"{kind}: {error.message}")
                hidden.add(kind)
            return ()

    try:
        exists = api.get("v1", "Namespace", namespace) is not None
    except ApiError:
        exists = True  # not allowed to look, which users of one namespace often are not
    nodes = listed("v1", "Node", None)
    pods, events = (
        tuple(one for where in subject.namespaces for one in listed("v1", kind, where)) for kind in ("Pod", "Event")
    )
    if subject.plan is not None and subject.plan.region:  # on AWS the autoscaler is ours
        system = listed("v1", "Event", AUTOSCALER_NAMESPACE)
        events += tuple(one for one in system if one.get("involvedObject", {}).get("name") == AUTOSCALER_STATUS)
    jobs = listed("batch/v1", "Job", subject.mirror_namespace)
    services = listed("ray.io/v1", "RayService", namespace)
    clusters = listed("ray.io/v1", "RayCluster", namespace)
    # A namespace may have been there before the stack, and others' Deployments in it may sleep by right.
    deployments = listed("apps/v1", "Deployment", namespace, f"{STACK_LABEL}={subject.stack.name}")
    lacking = tuple(_lacking(api, subject, refused))
    seen = (exists, nodes, pods, events, jobs, services, clusters, deployments, frozenset(hidden), lacking)
    return Objects(*seen), refused


def _lacking(api: Api, subject: Subject, refused: list[str]) -> Iterator[str]:
    if subject.plan is None:
        return
    try:
        yield from missing_nodes(api, subject.plan)
        yield from operators(api, subject.plan)
    except ApiError as error:
        refused.append(error.message)


def facts(objects: Objects, subject: Subject) -> Iterator[Evidence]:
    """The facts in the order of the objects."""
    if not objects.namespace:
        yield _fact("namespace", f"namespace {subject.namespace}", "the cluster has no such namespace")
        return
    for sentence in objects.lacking:
        yield _fact("lacking", "the cluster", sentence)
    for node in objects.nodes:
        yield from _node(node)
    yield from _pods(objects, subject)
    yield from _refusals(objects, subject)
    yield from _deployments(objects)
    for event in _standing(objects):
        yield from _event(event, objects, subject)
    for trouble in failed_jobs(objects.jobs):
        yield _fact("job", f"Job {trouble.name}", trouble.sentence, models=_models(trouble.name, objects.jobs, subject))
    yield from _services(objects)


def _node(node: Manifest) -> Iterator[Evidence]:
    name = f"node {node['metadata']['name']}"
    for condition in node.get("status", {}).get("conditions", []):
        kind, status = condition["type"], condition["status"]
        if (kind == "Ready" and status != "True") or (kind in PRESSURES and status == "True"):
            text = f"{kind}={status}: {condition.get('reason', '')}: {condition.get('message', '')}"
            yield _fact("node", name, text, condition.get("lastTransitionTime", ""))


def _pods(objects: Objects, subject: Subject) -> Iterator[Evidence]:
    every = "RayService" in objects.hidden  # which Ray cluster is wanted is not known
    pods = list(objects.pods) if every else wanted_pods(objects.pods, objects.services)
    for trouble in troubles(pods, objects.events):
        models = _models(trouble.name, objects.pods, subject)
        yield _fact("pod", f"pod {trouble.name}", trouble.sentence, _since(trouble.name, pods), models)


def _refusals(objects: Objects, subject: Subject) -> Iterator[Evidence]:
    """Why controllers cannot make pods now: the condition `ReplicaFailure`, and Jobs without one have an event.

    KubeRay writes it on a RayCluster (`utils.RayClusterReplicaFailure`, KubeRay 1.6), Kubernetes on a Deployment.
    """
    statuses = [service.get("status", {}) for service in objects.services]
    wanted = {one.get(key, {}).get("rayClusterName") for one in statuses for key in SERVED_BY}
    every = "RayService" in objects.hidden  # as above
    clusters = [("RayCluster", one) for one in objects.clusters if every or one["metadata"]["name"] in wanted]
    for kind, one in (*clusters, *(("Deployment", one) for one in objects.deployments)):
        for condition in one.get("status", {}).get("conditions", []):
            if (condition["type"], condition["status"]) == ("ReplicaFailure", "True"):
                text = f"{condition.get('reason', '')}: {condition.get('message', '')}"
                name, time = f"{kind} {one['metadata']['name']}", condition.get("lastTransitionTime", "")
                yield _fact("refused", name, text, time)
    for event in _standing(objects):
        about = event.get("involvedObject", {})
        if event.get("reason") == "FailedCreate" and about.get("kind") == "Job" and "Job" not in objects.hidden:
            text, models = f"FailedCreate: {event.get('message', '')}", _models(about["name"], objects.jobs, subject)
            yield _fact("refused", f"Job {about['name']}", text, _when(event), models)


def _deployments(objects: Objects) -> Iterator[Evidence]:
    """Deployments of the stack that have no pod, by their own judgement or because somebody asked for none."""
    for one in objects.deployments:
        name, status = f"Deployment {one['metadata']['name']}", one.get("status", {})
        if one["spec"].get("replicas", 1) == 0:
            yield _fact("deployment-pods", name, "is scaled to 0")
        for condition in status.get("conditions", []):
            if (condition["type"], condition["status"]) == ("Available", "False"):
                text = f"has {status.get('availableReplicas', 0)} of {one['spec'].get('replicas', 1)} pods available"
                yield _fact("deployment-pods", name, text, condition.get("lastTransitionTime", ""))


def _standing(objects: Objects) -> Iterator[Manifest]:
    """Warnings that nothing has overtaken: events live for an hour, and what they tell may be mended.

    A pod that runs or is gone waits for nothing, a controller that made its pods later was let, and what the condition
    of an object says is said by that.
    """
    waits = "Pod" in objects.hidden or any(_waits(pod) for pod in objects.pods)
    pods = {one["metadata"]["name"]: one.get("status", {}).get("phase") for one in objects.pods}
    jobs = {one["metadata"]["name"] for one in objects.jobs}
    well: dict[str, str] = {}
    for event in objects.events:
        if event.get("type") != "Warning" and event.get("reason") not in FAULTS:
            uid = event.get("involvedObject", {}).get("uid", "")
            well[uid] = max(well.get(uid, ""), _when(event))
    for event in objects.events:
        about = event.get("involvedObject", {})
        kind, name = about.get("kind"), about.get("name")
        lives = {"Pod": pods, "Job": jobs}.get(str(kind))
        gone = lives is not None and kind not in objects.hidden and name not in lives
        waited = event.get("reason") in WAITING and pods.get(name) in ("Running", "Succeeded")
        # What the autoscaler does for one group, it records on the same object as what failed for another.
        own = bool(about.get("uid")) and name != AUTOSCALER_STATUS
        overtaken = own and _when(event) < well.get(about["uid"], "")
        overtaken |= kind == "RayService" and event.get("reason") == REFUSED_SPEC  # a condition says whether it is so
        overtaken |= event.get("reason") in NOT_MADE and _is_said(about, objects)
        overtaken |= event.get("reason") in SCALE_UPS and not waits
        if (event.get("type") == "Warning" or event.get("reason") in FAULTS) and not (gone or waited or overtaken):
            yield event


def _is_said(about: Manifest, objects: Objects) -> bool:
    """Whether the object of a controller that could not make a pod says, better than an event, if that is so now."""
    kind = str(about.get("kind"))
    if kind == "Job":  # it has no condition of it, but has had no pod
        job = next((one for one in objects.jobs if one["metadata"]["name"] == about.get("name")), {})
        return not {*job.get("status", {})}.isdisjoint(STARTED)
    return kind in SAID_BY and SAID_BY[kind] not in objects.hidden


def _waits(pod: Manifest) -> bool:
    """Whether the scheduler found no node for it."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any((one["type"], one["status"]) == ("PodScheduled", "False") for one in conditions)


def _when(event: Manifest) -> str:
    """When it happened last; in UTC and of one form, so that texts compare as times do."""
    series = (event.get("series") or {}).get("lastObservedTime")
    return str(event.get("lastTimestamp") or series or event.get("eventTime") or "")


def _event(event: Manifest, objects: Objects, subject: Subject) -> Iterator[Evidence]:
    about = event.get("involvedObject", {})
    name, time = about.get("name", "?"), _when(event)
    text = f"{event.get('reason', '')}: {event.get('message', '')}"
    models = _models(name, (*objects.pods, *objects.jobs), subject)
    yield _fact("event", f"{about.get('kind', 'object')} {name}", text, time, models)


def _services(objects: Objects) -> Iterator[Evidence]:
    if "RayService" in objects.hidden:
        return
    service = next((one for one in objects.services if one["metadata"]["name"] == RAY_SERVICE), None)
    for condition in (service or {}).get("status", {}).get("conditions", []):
        if (condition["type"], condition.get("reason")) == ("Ready", NOT_TAKEN):  # events of busy objects are dropped
            text, time = f"{REFUSED_SPEC}: {condition.get('message', '')}", condition.get("lastTransitionTime", "")
            yield _fact("refused", f"RayService {RAY_SERVICE}", text, time)
    if doing := still_to_do(service):
        yield _fact("rayservice", f"RayService {RAY_SERVICE}", doing)
    if service is None:
        return
    for key in SERVED_BY:
        applications = service.get("status", {}).get(key, {}).get("applicationStatuses") or {}
        for slug, state in applications.items():
            yield from _application(slug, state)


def _application(slug: str, state: Manifest) -> Iterator[Evidence]:
    """An application and its deployments as KubeRay copies them from Serve (`AppStatus`, KubeRay 1.6)."""
    if state.get("status") == RUNNING:
        return
    text = f"{state.get('status')}: {state.get('message') or ''}"
    yield Evidence(Layer.SERVE, "application", f"application {slug}", text, models=(slug,))
    for name, deployment in (state.get("serveDeploymentStatuses") or {}).items():
        if deployment.get("status") != "HEALTHY":
            text = f"{deployment.get('status')}: {deployment.get('message') or ''}"
            yield Evidence(Layer.SERVE, "deployment", f"deployment {slug}/{name}", text, models=(slug,))


def _models(name: str, objects: tuple[dict[str, Any], ...], subject: Subject) -> tuple[str, ...]:
    """The models that an object is for, by its labels: a mirror's one, a worker's pool's; none stands for all."""
    found: dict[str, str] = next(
        (one["metadata"].get("labels", {}) for one in objects if one["metadata"]["name"] == name), {}
    )
    if mirrored := found.get(MODEL_LABEL):
        slugs = (model.config.slug for model in subject.models)
        return tuple(slug for slug in slugs if dns_name(slug, limit=63) == mirrored)
    return subject.in_pool(found[POOL_LABEL]) if POOL_LABEL in found else ()


def _since(name: str, pods: list[dict[str, Any]]) -> str:
    return next((str(p["metadata"].get("creationTimestamp", "")) for p in pods if p["metadata"]["name"] == name), "")


def _fact(kind: str, name: str, text: str, time: str = "", models: tuple[str, ...] = ()) -> Evidence:
    return Evidence(Layer.KUBERNETES, kind, name, text, str(time), models)
