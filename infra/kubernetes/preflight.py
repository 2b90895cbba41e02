"""Checks an existing cluster before the first resource is registered, and reports all that is missing in one message.

Only for `target: kubernetes`: a new EKS cluster does not exist yet, and is made to fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

from modelfleet.infra.kubernetes.api import Api, ApiError, Unreachable
from modelfleet.infra.kubernetes.manifests.gateway import GATEWAY_API
from modelfleet.infra.kubernetes.names import OPERATOR, head_policy
from modelfleet.infra.kubernetes.rollout import rollout_notice
from modelfleet.infra.kubernetes.versions import KUBERAY
from modelfleet.infra.names import GPU, POOL_LABEL, STACK_LABEL
from modelfleet.infra.planning.plan import FrontDoor, Plan, PoolPlan
from modelfleet.serving.config.errors import SetupError

#: In which namespaces the run changes a resource: none, the stack's, that of its mirror Jobs, both.
CLUSTER, STACK, JOBS, BOTH = (), ("stack",), ("jobs",), ("stack", "jobs")
#: What the run changes, as (group, resource, where); the user needs each with every verb below.
NEEDED: Final = (
    ("", "namespaces", CLUSTER),
    ("apiextensions.k8s.io", "customresourcedefinitions", CLUSTER),
    ("scheduling.k8s.io", "priorityclasses", CLUSTER),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", CLUSTER),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", CLUSTER),
    ("", "configmaps", BOTH),
    ("", "secrets", BOTH),
    ("", "services", STACK),
    ("", "serviceaccounts", BOTH),
    ("", "resourcequotas", BOTH),
    ("apps", "deployments", STACK),
    ("batch", "jobs", JOBS),
    ("policy", "poddisruptionbudgets", STACK),
    ("rbac.authorization.k8s.io", "roles", STACK),
    ("rbac.authorization.k8s.io", "rolebindings", STACK),
    ("networking.k8s.io", "networkpolicies", BOTH),
    ("ray.io", "rayservices", STACK),
    ("ray.io", "rayclusters", STACK),
)
VERBS: Final = ("create", "patch", "delete")
#: ValidatingAdmissionPolicy is stable since. https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/
OLDEST: Final = (1, 30)
#: Of `https://` without a port, which is what the stack tells clients.
HTTPS_PORT: Final = 443
#: KubeRay makes and deletes them; a run changes the limits of their worker groups.
ONLY_PATCHED: Final = ("rayclusters",)
#: Resources that only the stack's own operator needs.
FOR_OPERATOR: Final = ("customresourcedefinitions", "roles", "rolebindings")
STORAGE, CLASSES = "storage.k8s.io/v1", "StorageClass"
#: https://kubernetes.io/docs/tasks/administer-cluster/change-default-storage-class/
DEFAULT_CLASS: Final = "storageclass.kubernetes.io/is-default-class"
#: What of these a Prometheus of the stack's own needs too.
FOR_FINDING_PODS: Final = ("roles", "rolebindings")
#: Resources of the cluster that only a stack with a namespace of its own makes.
FOR_NAMESPACE: Final = (
    *("namespaces", "priorityclasses", "validatingadmissionpolicies", "validatingadmissionpolicybindings"),
)


def check_cluster(plan: Plan, kubeconfig: str | None = None) -> str | None:
    """A notice of what the run will do to the live Ray cluster; None if it keeps the cluster.

    `kubeconfig` (a text or a path) goes before the stack's own setting.
    Raises `SetupError` with everything that would stop the run: no answer, no rights, no nodes, another operator.
    """
    settings = plan.config.kubernetes
    where = "modelfleet:kubernetes.kubeconfig" if settings.kubeconfig else "$KUBECONFIG"
    try:
        with closing(Api.from_kubeconfig(kubeconfig or settings.kubeconfig, settings.context)) as api:
            # Without rights the other checks cannot run.
            problems = [*too_old(api, plan), *missing_rights(api, plan)]
            problems = problems or [
                *missing_nodes(api, plan),
                *operators(api, plan),
                *missing_gateway(api, plan),
                *missing_monitoring(api, plan),
                *missing_storage(api, plan),
            ]
            notice = None if problems else rollout_notice(api, plan)
    except Unreachable as error:
        raise SetupError(f"{error}; start the cluster or correct {where}") from error
    except ApiError as error:
        if error.code == 401:
            raise SetupError(f"the cluster refused the credentials of {where}; log in again or correct it") from error
        raise SetupError(f"the cluster refused a query: {error.message}; {where} needs another user") from error
    if problems:
        raise SetupError("; ".join(problems))
    return notice


def too_old(api: Api, plan: Plan) -> list[str]:
    """A sentence if the cluster has no admission policies (`manifests/guard.py`), which the stack makes."""
    found = api.minor_version()
    if head_policy(plan) is None or found >= OLDEST:
        return []
    needs = f"the policy over the Ray head's token needs {_words(OLDEST)}"
    way = "upgrade it, or make the namespace yourself and do without: modelfleet:kubernetes.createNamespace: false"
    return [f"the cluster runs Kubernetes {_words(found)}, and {needs}; {way}"]


def _words(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def missing_rights(api: Api, plan: Plan) -> list[str]:
    """One sentence with every right that the kubeconfig's user lacks."""
    lacking = []
    needless = [] if plan.own_operator else [*FOR_OPERATOR]
    if not plan.config.kubernetes.create_namespace:
        needless += FOR_NAMESPACE
    door = plan.front_door
    ways = (("gateways", door and door.gateway_class), ("httproutes", door and door.parent))
    routes = [("gateway.networking.k8s.io", resource, STACK) for resource, wanted in ways if wanted]
    named = {"stack": plan.namespace, "jobs": plan.mirror_namespace}
    watches = [("monitoring.coreos.com", kind, STACK) for kind in ("podmonitors", "prometheusrules")]
    own = [("", "persistentvolumeclaims", STACK)]
    more = [*(watches if plan.monitoring else ()), *(own if plan.own_monitoring else ())]
    for group, resource, places in (*NEEDED, *routes, *more):
        if resource in needless and not (plan.own_monitoring and resource in FOR_FINDING_PODS):
            continue
        for namespace in dict.fromkeys(named[place] for place in places) or (None,):
            verbs = [
                verb
                for verb in (("patch",) if resource in ONLY_PATCHED else VERBS)
                if not _allowed(api, group, resource, verb, namespace)
            ]
            where = f" in {namespace}" if namespace not in (None, plan.namespace) else ""
            if verbs:
                lacking.append(f"{'/'.join(verbs)} {resource}{where}")
    return (
        [f"the kubeconfig's user lacks the rights to {', '.join(lacking)}; use an administrator of the namespace"]
        if lacking
        else []
    )


def missing_nodes(api: Api, plan: Plan) -> list[str]:
    """One sentence per pool that needs a node at once and has none with its labels and GPUs."""
    nodes = api.list("v1", "Node")
    return [sentence for pool in plan.pools if pool.min_nodes and (sentence := _lacks(pool, nodes))]


def missing_gateway(api: Api, plan: Plan) -> list[str]:
    """What is wrong with the Gateway API, or with the Gateway of the cluster that the stack names."""
    door, at = plan.front_door, "modelfleet:gateway"
    if door is None or door.parent is None:
        return []
    crd = api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "httproutes.gateway.networking.k8s.io")
    if crd is None:
        return [f"the cluster has no Gateway API; install its definitions, or use {at}.ingressClass"]
    if door.gateway_class:
        found = api.get(GATEWAY_API, "GatewayClass", door.gateway_class)
        lists = "`kubectl get gatewayclass` lists them"
        return [] if found else [f"{at}.gatewayClass: the cluster has no {door.gateway_class}; {lists}"]
    named = f"{at}.parentGateway: Gateway {door.parent_namespace}/{door.parent}"
    parent = api.get(GATEWAY_API, "Gateway", door.parent, door.parent_namespace)
    if parent is None:
        return [f"{named} does not exist; `kubectl get gateway -A` lists them"]
    with_tls = {one["name"]: one for one in parent["spec"]["listeners"] if one["protocol"] == "HTTPS"}
    listener = with_tls.get(door.listener)
    if listener is None:
        those = ", ".join(with_tls) or "none"
        return [f"{named} has no listener {door.listener} of protocol HTTPS; those with it: {those}"]
    return [f"{named}, listener {door.listener}: {fault}" for fault in _shut(listener, door, plan.namespace)]


def missing_storage(api: Api, plan: Plan) -> list[str]:
    """A sentence if nobody would make the volume of the stack's own Prometheus."""
    own, at = plan.own_monitoring, "modelfleet:observability.storageClass"
    if own is None or own.makes_class:
        return []
    classes = {one["metadata"]["name"]: one["metadata"].get("annotations", {}) for one in api.list(STORAGE, CLASSES)}
    named = f"{', '.join(sorted(classes)) or 'none'}"
    if own.storage_class is None:
        if any(marks.get(DEFAULT_CLASS) == "true" for marks in classes.values()):
            return []
        return [f"{at}: the cluster has no default StorageClass for the volume of metrics; name one of: {named}"]
    return [] if own.storage_class in classes else [f"{at}: the cluster has no {own.storage_class}; it has: {named}"]


def missing_monitoring(api: Api, plan: Plan) -> list[str]:
    """A sentence if the cluster has no Prometheus Operator, for which the stack makes objects."""
    if plan.monitoring is None:
        return []
    kinds = ("podmonitors", "prometheusrules")
    names = [f"{kind}.monitoring.coreos.com" for kind in kinds]
    absent = [name for name in names if api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name) is None]
    if not absent:
        return []
    way = "install the Prometheus Operator, or remove modelfleet:observability.metrics"
    return [f"the cluster has no definition {' and '.join(absent)}; {way}"]


def _shut(listener: dict[str, Any], door: FrontDoor, namespace: str) -> Iterator[str]:
    """Why a listener leads no client of `base_url` here."""
    if listener["port"] != HTTPS_PORT:
        yield f"found port {listener['port']}, but clients use {door.base_url}; name a listener at port {HTTPS_PORT}"
    takes = listener.get("allowedRoutes", {}).get("namespaces", {}).get("from", "Same")  # the definition's default
    if takes not in ("All", "Selector") and namespace != door.parent_namespace:
        way = f"let in those of {namespace} by from: Selector or All"
        yield f"found allowedRoutes.namespaces.from: {takes}, which shuts out this stack's route; {way}"


def operators(api: Api, plan: Plan) -> list[str]:
    """What is wrong with the cluster's KubeRay operators: exactly one must act on the stack's namespace."""
    found = list(_operators(api))
    mine = [watched for namespace, watched in found if namespace == plan.operator_namespace]
    problems = [
        f"{OPERATOR} in namespace {namespace} watches all namespaces and would act on this stack too; "
        f"give it --watch-namespace, or use it: modelfleet:kubernetes.operatorNamespace: {namespace}"
        for namespace, watched in found
        if namespace != plan.operator_namespace and not watched
    ]
    if plan.own_operator:
        return problems
    if not mine:
        problems.append(
            f"no KubeRay operator runs in namespace {plan.operator_namespace}; "
            "install it there or remove modelfleet:kubernetes.operatorNamespace"
        )
    elif not any(plan.namespace in watched or not watched for watched in mine):
        problems.append(
            f"{OPERATOR} in namespace {plan.operator_namespace} does not watch {plan.namespace}; "
            "add it to --watch-namespace"
        )
    return [*problems, *_old_definition(api)]


def _operators(api: Api) -> Iterator[tuple[str, set[str]]]:
    """The namespace of each KubeRay operator and the namespaces that it watches; none means all."""
    for deployment in api.list("apps/v1", "Deployment"):
        containers = deployment["spec"]["template"]["spec"]["containers"]
        if any("kuberay/operator" in container["image"] for container in containers):
            words = [word for c in containers for word in (*(c.get("args") or []), *(c.get("command") or []))]
            named = [word.partition("=")[2] for word in words if word.lstrip("-").startswith("watch-namespace=")]
            yield deployment["metadata"]["namespace"], {name for text in named for name in text.split(",") if name}


def _old_definition(api: Api) -> list[str]:
    """A sentence if the cluster's RayService definition lacks a field that the stack's RayService uses."""
    way_out = f"install KubeRay {KUBERAY}, definitions first"
    crd = api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "rayservices.ray.io")
    if crd is None:
        return [f"the cluster has no RayService definition; {way_out}"]
    cluster = _cluster_properties(crd)
    lacking = [] if "resources" in _group_properties(cluster) else ["its worker groups have no `resources`"]
    # The API server drops a field that it does not know, and Ray would answer everybody.
    lacking += [] if "authOptions" in cluster else ["it has no `authOptions`, which make Ray ask for a token"]
    if not lacking:
        return []
    return [f"the cluster's RayService definition is too old: {' and '.join(lacking)}; {way_out}"]


def _cluster_properties(crd: dict[str, Any]) -> dict[str, Any]:
    """Fields of `rayClusterConfig` in the served `v1`; empty if the definition has another form."""
    for version in crd["spec"]["versions"]:
        if version["name"] == "v1":
            at = version["schema"]["openAPIV3Schema"]
            for key in ("spec", "rayClusterConfig"):
                at = at.get("properties", {}).get(key, {})
            found: dict[str, Any] = at.get("properties", {})
            return found
    return {}


def _group_properties(cluster: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = cluster.get("workerGroupSpecs", {}).get("items", {}).get("properties", {})
    return found


def _lacks(pool: PoolPlan, nodes: list[dict[str, Any]]) -> str | None:
    wanted = {key: value for key, value in pool.labels.items() if key in (STACK_LABEL, POOL_LABEL)}
    mine = [node for node in nodes if wanted.items() <= node["metadata"].get("labels", {}).items()]
    if not mine:
        words = " ".join(f"{key}={value}" for key, value in sorted(wanted.items()))
        return f"pool {pool.name} has no node; label one: kubectl label node NAME {words}"
    if any(int(node["status"]["allocatable"].get(GPU, 0)) >= pool.node.gpus for node in mine):
        return None
    names = ", ".join(node["metadata"]["name"] for node in mine[:3])
    return (
        f"no node of pool {pool.name} offers {pool.node.gpus} {GPU} ({names}); is the NVIDIA device plugin installed?"
    )


def _allowed(api: Api, group: str, resource: str, verb: str, namespace: str | None) -> bool:
    attributes = {"group": group, "resource": resource, "verb": verb, **({"namespace": namespace} if namespace else {})}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    return bool(api.create(review)["status"].get("allowed"))
