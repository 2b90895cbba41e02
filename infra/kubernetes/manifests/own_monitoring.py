"""A Prometheus and an Alertmanager of the stack's own (`observability.metrics: own`): one pod, and its volume.

Prometheus finds the pods through the API server, by the same labels and ports as an operator's PodMonitors. Both
processes read their files at their start, so the pod starts anew when one changes; a minute's scrapes are lost then,
and what Prometheus knows of pending alerts is kept in its volume.
"""

from __future__ import annotations

from typing import Final

from modelfleet.infra.catalog.images import reference
from modelfleet.infra.kubernetes.manifests.observability import dashboard_maps
from modelfleet.infra.kubernetes.manifests.pods import (
    CAUSE_IN_STATUS,
    Manifest,
    container_security,
    resources,
    single,
)
from modelfleet.infra.kubernetes.names import ALERT_WEBHOOK, MONITOR, digest, dns_name, labels, selector
from modelfleet.infra.observability import rule_groups
from modelfleet.infra.observability.own import WEBHOOK_FILE, alertmanager_config, as_yaml, prometheus_config
from modelfleet.infra.observability.scrape import pod_scrape_configs
from modelfleet.infra.planning.plan import OwnMonitoringPlan, Plan

#: Both images run as `nobody` (prometheus/prometheus Dockerfile, prometheus/alertmanager Dockerfile).
NOBODY: Final = 65534
PROMETHEUS_PORT: Final = 9090
ALERTMANAGER_PORT: Final = 9093
CONFIG_PATH: Final = "/etc/modelfleet/monitor"
RULES_PATH: Final = "/etc/modelfleet/rules"
WEBHOOK_PATH: Final = "/etc/modelfleet/webhook"
DATA_PATH: Final = "/data"
PROVISIONER: Final = "ebs.csi.aws.com"
#: Requests of the two, which infra/catalog/system-pods.csv adds up.
PROMETHEUS_SIZE: Final = ("200m", "1Gi")
ALERTMANAGER_SIZE: Final = ("50m", "128Mi")


def own_monitoring(plan: Plan) -> list[Manifest]:
    """Account, rights, volume, configuration, pod and Service; nothing where the stack runs no Prometheus."""
    own = plan.own_monitoring
    if own is None:
        return []
    rules, config = _rules(plan), _config(plan, own)
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(plan)},
        *_rights(plan),
        *_class(plan, own),
        _claim(plan, own),
        *rules,
        config,
        _deployment(plan, own, rules, digest([one["data"] for one in (*rules, config)])),
        _service(plan),
        *dashboard_maps(plan, plan.config.observability.dashboard_labels),
    ]


def _rights(plan: Plan) -> list[Manifest]:
    """To find the pods of its namespace.

    https://prometheus.io/docs/prometheus/latest/configuration/configuration/#kubernetes_sd_config
    """
    group = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    return [
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": _metadata(plan), "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": _metadata(plan),
            "roleRef": {"apiGroup": group, "kind": "Role", "name": MONITOR},
            "subjects": [{"kind": "ServiceAccount", "name": MONITOR, "namespace": plan.namespace}],
        },
    ]


def _class(plan: Plan, own: OwnMonitoringPlan) -> list[Manifest]:
    """A new EKS cluster has a class of gp2 volumes without encryption, and none is the default.

    https://github.com/kubernetes-sigs/aws-ebs-csi-driver/blob/master/docs/parameters.md
    """
    if not own.makes_class:
        return []
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": own.storage_class, "labels": labels(plan, MONITOR)},
            "provisioner": PROVISIONER,
            "parameters": {"type": "gp3", "encrypted": "true"},
            "reclaimPolicy": "Delete",
            "allowVolumeExpansion": True,
            # In the zone of the pod's node.
            "volumeBindingMode": "WaitForFirstConsumer",
        }
    ]


def _claim(plan: Plan, own: OwnMonitoringPlan) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(plan),
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{own.volume_gib}Gi"}},
            **({"storageClassName": own.storage_class} if own.storage_class else {}),
        },
    }


def _rules(plan: Plan) -> list[Manifest]:
    """A ConfigMap holds 1 MiB, and 27 models with three goals have half of that.

    All their files come into one folder, where of two with one name the kubelet keeps the last: long names are cut.
    """
    return [
        _config_map(plan, f"{MONITOR}-rules-{name}", {f"{name}.yaml": as_yaml({"groups": [group]})})
        for group in rule_groups(plan)["groups"]
        for name in (f"{dns_name(group['name'])}-{digest(group['name'], 6)}",)
    ]


def _config(plan: Plan, own: OwnMonitoringPlan) -> Manifest:
    made = prometheus_config(
        pod_scrape_configs(plan.namespace, own.states), [f"{RULES_PATH}/*.yaml"], f"127.0.0.1:{ALERTMANAGER_PORT}"
    )
    # A new URL reaches the file within two minutes, and Alertmanager reads it for each message: no pod starts anew.
    webhook = f"{WEBHOOK_PATH}/{WEBHOOK_FILE}" if own.sends else None
    files = {"prometheus.yml": as_yaml(made), "alertmanager.yml": as_yaml(alertmanager_config(webhook))}
    return _config_map(plan, MONITOR, files)


def _deployment(plan: Plan, own: OwnMonitoringPlan, rules: list[Manifest], content: str) -> Manifest:
    sources = [{"configMap": {"name": one["metadata"]["name"]}} for one in rules]
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": MONITOR}},
        {"name": "config", "configMap": {"name": MONITOR}},
        {"name": "rules", "projected": {"sources": sources}},
        *([{"name": "webhook", "secret": {"secretName": ALERT_WEBHOOK}}] if own.sends else []),
    ]
    made = single(plan, MONITOR, NOBODY, containers=[_prometheus(plan, own), _alertmanager(plan, own)], volumes=volumes)
    made["spec"]["template"]["metadata"]["annotations"] = {"modelfleet.dev/content": content}
    # Prometheus closes its files; a kill costs the next start the reading of its whole log.
    made["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 120
    return made


def _prometheus(plan: Plan, own: OwnMonitoringPlan) -> Manifest:
    words = [
        f"--config.file={CONFIG_PATH}/prometheus.yml",
        f"--storage.tsdb.path={DATA_PATH}/prometheus",
        f"--storage.tsdb.retention.time={own.retention_days}d",
        f"--storage.tsdb.retention.size={own.keep_mib}MB",
        f"--web.listen-address=:{PROMETHEUS_PORT}",
    ]
    return _container(plan, "prometheus", words, PROMETHEUS_PORT, PROMETHEUS_SIZE, "2Gi", {"rules": RULES_PATH})


def _alertmanager(plan: Plan, own: OwnMonitoringPlan) -> Manifest:
    words = [
        f"--config.file={CONFIG_PATH}/alertmanager.yml",
        f"--storage.path={DATA_PATH}/alertmanager",
        f"--web.listen-address=:{ALERTMANAGER_PORT}",
        # One alone has nobody to tell what it sent.
        "--cluster.listen-address=",
    ]
    more = {"webhook": WEBHOOK_PATH} if own.sends else {}
    return _container(plan, "alertmanager", words, ALERTMANAGER_PORT, ALERTMANAGER_SIZE, "256Mi", more)


def _container(
    plan: Plan, name: str, words: list[str], port: int, size: tuple[str, str], most: str, more: dict[str, str]
) -> Manifest:
    mounts = [{"name": of, "mountPath": path, "readOnly": True} for of, path in {"config": CONFIG_PATH, **more}.items()]
    return {
        "name": name,
        "image": reference(name, registry=plan.config.image_registry),
        "imagePullPolicy": "IfNotPresent",
        "args": words,
        "ports": [{"name": name, "containerPort": port}],
        # The log of the last hours is read first.
        "startupProbe": {**_asked("healthy", name), "periodSeconds": 5, "failureThreshold": 120},
        "readinessProbe": {**_asked("ready", name), "periodSeconds": 10},
        "livenessProbe": {**_asked("healthy", name), "periodSeconds": 30},
        "resources": resources(*size, limit_memory=most),
        **CAUSE_IN_STATUS,
        "securityContext": container_security(read_only=True),
        "volumeMounts": [{"name": "data", "mountPath": DATA_PATH}, *mounts],
    }


def _asked(how: str, port: str) -> Manifest:
    return {"httpGet": {"path": f"/-/{how}", "port": port}}


def _service(plan: Plan) -> Manifest:
    ports = {"prometheus": PROMETHEUS_PORT, "alertmanager": ALERTMANAGER_PORT}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(plan),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(MONITOR),
            "ports": [{"name": name, "port": port, "targetPort": port} for name, port in ports.items()],
        },
    }


def _config_map(plan: Plan, name: str, data: dict[str, str]) -> Manifest:
    metadata = {"name": name, "namespace": plan.namespace, "labels": labels(plan, MONITOR)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _metadata(plan: Plan) -> Manifest:
    return {"name": MONITOR, "namespace": plan.namespace, "labels": labels(plan, MONITOR)}
