"""The gateway: the plan's HAProxy configuration as a Deployment, a Service, and what binds both to a front door.

A change of configuration or keys is a rolling update: new pods take new requests, and an old pod ends with its last
stream (the image's stop signal is SIGUSR1, which tells HAProxy to finish what it has).
"""

from __future__ import annotations

from typing import Any, Final

from modelfleet.infra.catalog.images import reference
from modelfleet.infra.gateway import GatewayFiles, Runtime, render
from modelfleet.infra.gateway.render import DOOR
from modelfleet.infra.kubernetes.manifests.load_balancer import readiness_gate
from modelfleet.infra.kubernetes.manifests.pods import (
    CAUSE_IN_STATUS,
    Manifest,
    container_security,
    in_front,
    mib,
    pod_security,
    resources,
    system_placement,
)
from modelfleet.infra.kubernetes.names import (
    GATEWAY,
    GATEWAY_KEYS,
    GATEWAY_METRICS_PORT,
    GATEWAY_QUEUES,
    REPLICA_PORTS,
    SERVE_PORT,
    SERVE_SERVICE,
    labels,
    selector,
)
from modelfleet.infra.planning.plan import FrontDoor, Plan

GATEWAY_API: Final = "gateway.networking.k8s.io/v1"
PORT: Final = 8080
BODIES_METRICS_PORT: Final = 8406
#: The user of the official image.
HAPROXY_USER: Final = 99
CONFIG_PATH, KEYS_PATH, RUN_PATH = "/etc/gateway", "/etc/gateway-keys", "/run/gateway"
#: The pod's own address, which its requests tell replicas.
POD_IP: Final = "POD_IP"
KEY_MAP: Final = "keys.map"
#: Annotation of the gateway's pods: a hash of the key map, so that changed keys roll them.
KEYS_ID: Final = "modelfleet.dev/keys"
BODIES_MEMORY_MIB: Final = 2048
#: Seconds between the decision to end a pod and its stop signal, which closes its port. In that time nodes and load
#: balancers learn of it and send new requests elsewhere. The second process ends later; the first still needs it.
LEAVE_SECONDS, BODIES_LEAVE_SECONDS = 15, 20
#: How much longer behind a load balancer of AWS: its controller has to hear of the pod, then its nodes.
BALANCER_LEAVE_SECONDS = 15
#: How long a process may take until it listens.
START_SECONDS = 120


def gateway_files(plan: Plan) -> GatewayFiles:
    """HAProxy's configuration; the upstream is the Service of Serve's pods, which KubeRay moves during an upgrade."""
    runtime = Runtime(
        bind=f":{PORT}",
        folder=CONFIG_PATH,
        run_folder=RUN_PATH,
        key_map=f"{KEYS_PATH}/{KEY_MAP}",
        metrics_bind=f":{GATEWAY_METRICS_PORT}",
        bodies_metrics_bind=f":{BODIES_METRICS_PORT}",
        threads=2,
        bodies_memory_mib=BODIES_MEMORY_MIB,
        resolve_names=True,
        replica_ports=REPLICA_PORTS,
        pods=plan.ray_cluster.most_pods,
        door_bind=f":{plan.front_door.port}" if plan.front_door else None,
        door_idle_s=plan.front_door.idle_s if plan.front_door else 0,
        told_at=f"%[env({POD_IP})]:{GATEWAY_METRICS_PORT}",
    )
    return render(plan.gateway, runtime, upstream=f"{SERVE_SERVICE}.{plan.namespace}.svc.cluster.local:{SERVE_PORT}")


def gateway_config(plan: Plan) -> Manifest:
    """The ConfigMap with the rendered files."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(plan),
        "data": dict(sorted(gateway_files(plan).texts.items())),
    }


def gateway_deployment(plan: Plan, keys_id: Any) -> Manifest:
    """The Deployment; `keys_id`, text or an output, is a hash of the key map, so that changed keys roll the pods."""
    content = {"modelfleet.dev/config": gateway_files(plan).content_id, KEYS_ID: keys_id}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(GATEWAY)},
    }
    pod = {
        "serviceAccountName": GATEWAY,
        **in_front(plan),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(HAPROXY_USER),
        "affinity": system_placement(plan),
        "topologySpreadConstraints": [spread, {**spread, "topologyKey": "topology.kubernetes.io/zone"}],
        # As long as the longest stream, where the cluster waits for it; an old pod ends earlier, with its last request.
        "terminationGracePeriodSeconds": plan.grace_s(
            plan.gateway.settings.timeout_s + BODIES_LEAVE_SECONDS + _longer_leave(plan) + 30
        ),
        **readiness_gate(plan),
        "containers": [_gateway(plan), _bodies(plan)],
        "volumes": [
            {"name": "config", "configMap": {"name": GATEWAY}},
            {"name": "keys", "secret": {"secretName": GATEWAY_KEYS, "optional": plan.gateway.auth != "keys"}},
            {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(plan),
        "spec": {
            "replicas": plan.gateway.settings.replicas,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": selector(GATEWAY)},
            "template": {"metadata": {"labels": labels(plan, GATEWAY), "annotations": content}, "spec": pod},
        },
    }


def gateway_service(plan: Plan) -> Manifest:
    """Reachable inside the cluster only. A load balancer asks the pods at their own addresses."""
    door = plan.front_door
    for_door = [{"name": DOOR, "port": door.port, "targetPort": DOOR, "appProtocol": "http"}] if door else []
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(plan),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(GATEWAY),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"}, *for_door],
        },
    }


def gateway_queues(plan: Plan) -> Manifest:
    """The address of each gateway pod, where Serve's controller asks how many requests wait (`serving/scaling.py`).

    An old pod that still has streams has none that wait for long, and is not asked.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**_metadata(plan), "name": GATEWAY_QUEUES},
        "spec": {
            "clusterIP": "None",
            "selector": selector(GATEWAY),
            "ports": [{"name": "metrics", "port": GATEWAY_METRICS_PORT}],
        },
    }


def gateway_ingress(plan: Plan) -> list[Manifest]:
    """One Ingress of the stack's class, on a cluster that is not ours."""
    if plan.front_door is None or plan.front_door.load_balancer or plan.front_door.parent:
        return []
    settings, host = plan.gateway.settings, plan.front_door.hostname
    backend = {"service": {"name": GATEWAY, "port": {"name": DOOR}}}
    rule = {"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    tls = [{"hosts": [host], "secretName": settings.tls_secret}] if settings.tls_secret else []
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {**_metadata(plan), "annotations": _ingress_annotations(plan)},
            "spec": {"ingressClassName": settings.ingress_class, "rules": [rule], **({"tls": tls} if tls else {})},
        }
    ]


def gateway_route(plan: Plan) -> list[Manifest]:
    """One HTTPRoute, on a cluster with the Gateway API, and the Gateway where the stack makes it.

    Its timeouts are off: an answer may stream as long as HAProxy lets it, and Envoy's default ends it after 15 s.
    https://gateway-api.sigs.k8s.io/guides/http-timeouts
    """
    door = plan.front_door
    if door is None or door.parent is None:
        return []
    parent = {"namespace": door.parent_namespace, "name": door.parent, "sectionName": door.listener}
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": [{"name": GATEWAY, "port": door.port}],
        "timeouts": {"request": "0s", "backendRequest": "0s"},
    }
    route = {
        "apiVersion": GATEWAY_API,
        "kind": "HTTPRoute",
        "metadata": _metadata(plan),
        "spec": {"parentRefs": [parent], "hostnames": [door.hostname], "rules": [rule]},
    }
    return [*([_own_gateway(plan, door)] if door.gateway_class else []), route]


def _own_gateway(plan: Plan, door: FrontDoor) -> Manifest:
    """One listener, for this namespace's routes only."""
    listener = {
        "name": door.listener,
        "hostname": door.hostname,
        "port": 443,
        "protocol": "HTTPS",
        "tls": {"mode": "Terminate", "certificateRefs": [{"name": plan.gateway.settings.tls_secret}]},
        "allowedRoutes": {"namespaces": {"from": "Same"}},
    }
    return {
        "apiVersion": GATEWAY_API,
        "kind": "Gateway",
        "metadata": {**_metadata(plan), "name": door.parent},
        "spec": {"gatewayClassName": door.gateway_class, "listeners": [listener]},
    }


def _ingress_annotations(plan: Plan) -> dict[str, str]:
    """What ingress-nginx needs for streams and large bodies, which others ignore, and the stack's own."""
    timeout, body = plan.gateway.settings.timeout_s, plan.gateway.settings.max_body_mib
    nginx = "nginx.ingress.kubernetes.io"
    return {
        f"{nginx}/proxy-read-timeout": str(timeout),
        f"{nginx}/proxy-send-timeout": str(timeout),
        f"{nginx}/proxy-buffering": "off",
        f"{nginx}/proxy-body-size": f"{body}m",
        **plan.gateway.settings.ingress_annotations,
    }


def _longer_leave(plan: Plan) -> int:
    return BALANCER_LEAVE_SECONDS if plan.front_door and plan.front_door.load_balancer else 0


def _gateway(plan: Plan) -> Manifest:
    """The first process, which the Service and the front door lead to."""
    container = _container(plan, GATEWAY, "haproxy.cfg", GATEWAY_METRICS_PORT, LEAVE_SECONDS + _longer_leave(plan))
    if plan.gateway.settles:
        container["env"] = [{"name": POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    if plan.front_door:
        container["ports"].append({"name": DOOR, "containerPort": plan.front_door.port})
    return container


def _container(plan: Plan, name: str, config: str, metrics: int, leave_s: int) -> Manifest:
    mounts = [("config", CONFIG_PATH, True), ("keys", KEYS_PATH, True), ("run", RUN_PATH, False)]
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 5}
    # What hangs has no stream that is worth the pod's own grace.
    at_once = {"terminationGracePeriodSeconds": BODIES_LEAVE_SECONDS + 10}
    return {
        "name": name,
        "image": reference("haproxy", registry=plan.config.image_registry),
        "imagePullPolicy": "IfNotPresent",
        "command": ["haproxy", "-W", "-db", "-f", f"{CONFIG_PATH}/{config}"],
        "ports": [{"name": "http", "containerPort": PORT}, {"name": "metrics", "containerPort": metrics}],
        # A node that is busy with images lets it start late, which is not a reason to restart it.
        "startupProbe": {**probe, **at_once, "periodSeconds": 1, "failureThreshold": START_SECONDS},
        # Ready means that the process answers, not that a model does: otherwise no 503 could say why none does.
        "readinessProbe": {**probe, "failureThreshold": 2},
        "livenessProbe": {**probe, **at_once, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(leave_s)]}}},
        "resources": resources("500m", "512Mi", limit_memory="1Gi"),
        **CAUSE_IN_STATUS,
        "securityContext": container_security(read_only=True),
        "volumeMounts": [{"name": n, "mountPath": p, **({"readOnly": True} if ro else {})} for n, p, ro in mounts],
    }


def _bodies(plan: Plan) -> Manifest:
    """The second process, for request bodies beyond the first one's buffer; reached through its socket only."""
    leave_s = BODIES_LEAVE_SECONDS + _longer_leave(plan)
    container = _container(plan, "bodies", "bodies.cfg", BODIES_METRICS_PORT, leave_s)
    container["ports"] = [{"name": "bodies-metrics", "containerPort": BODIES_METRICS_PORT}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = {key: value for key, value in container[probe].items() if key != "httpGet"}
        container[probe] = {"tcpSocket": {"port": "bodies-metrics"}, **asked}
    container["resources"] = resources("100m", "256Mi", limit_memory=mib(BODIES_MEMORY_MIB + 512))
    return container


def _metadata(plan: Plan) -> Manifest:
    return {"name": GATEWAY, "namespace": plan.namespace, "labels": labels(plan, GATEWAY)}
