"""What sends the output of the stack's pods to CloudWatch Logs (`observability.logs: cloudwatch`): Fluent Bit.

AWS's own build of it, as a DaemonSet, which is how AWS documents it:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/Container-Insights-setup-logs-FluentBit.html. Not the
add-on `amazon-cloudwatch-observability`: it brings an operator, a webhook that sees every pod, and agents for metrics
(aws-observability/helm-charts 6.4.0), makes log groups without retention, and takes all namespaces.

It reads files of the host as root, so it lives in kube-system, which has no Pod Security level, and needs no right in
Kubernetes: a file's name says pod, namespace and container.
"""

from __future__ import annotations

from typing import Final

from modelfleet.infra.catalog.images import reference
from modelfleet.infra.kubernetes.manifests.pods import CAUSE_IN_STATUS, Manifest, mib, millis, resources
from modelfleet.infra.kubernetes.names import digest, labels, selector
from modelfleet.infra.names import LOG_COLLECTOR, LOG_COLLECTOR_NAMESPACE, STACK_LABEL, pods_log_group
from modelfleet.infra.planning.plan import LogCollectorPlan, Plan

CONFIG_PATH: Final = "/etc/modelfleet/log-collector"
CONFIG_FILE: Final = "fluent-bit.conf"
#: Where the kubelet puts `<pod>_<namespace>_<container>-<id>.log`, and where those links lead.
FILES: Final = "/var/log/containers"
FOLDERS: Final = (FILES, "/var/log/pods")
#: On the node, and not in the pod: what was read, and what was not sent yet, outlive the pod.
STATE: Final = "/var/lib/modelfleet-logs"
#: Of what waits while CloudWatch does not answer; then the oldest goes.
WAITING_MB: Final = 500
#: In memory a chunk has 2 MB.
CHUNKS: Final = 32
LIMIT_MIB: Final = 250
GRACE_S: Final = 30
NAME: Final = r"(?<pod>[^_/]+)_(?<namespace>[^_]+)_(?<container>.+)-[0-9a-f]{64}\.log"


def log_collector(plan: Plan, cluster_name: str) -> list[Manifest]:
    """Account, configuration and DaemonSet; nothing where nobody asks for it. The account's role is in `infra/aws`."""
    if plan.log_collector is None:
        return []
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(plan)}
    files = {CONFIG_FILE: fluent_bit(plan, cluster_name)}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(plan), "data": files}
    return [account, config, _daemon_set(plan, plan.log_collector, digest(files))]


def fluent_bit(plan: Plan, cluster_name: str) -> str:
    """Fluent Bit's configuration (4.x, https://docs.fluentbit.io/manual/pipeline): one event for each message.

    A message is sent as the pod wrote it: an object, whose fields CloudWatch Logs Insights finds. Its stream is
    `pods/<namespace>.<pod>.<container>`.
    """
    namespaces = dict.fromkeys((plan.namespace, plan.mirror_namespace))
    sections: dict[str, dict[str, str | int | None]] = {
        "SERVICE": {
            "Flush": 5,
            "Grace": GRACE_S,
            "Log_Level": "warn",
            "Daemon": "off",
            "storage.path": f"{STATE}/waiting",
            "storage.max_chunks_up": CHUNKS,
        },
        "INPUT": {
            "Name": "tail",
            "Path": ",".join(f"{FILES}/*_{namespace}_*.log" for namespace in namespaces),
            "Tag": "<namespace>.<pod>.<container>",
            "Tag_Regex": NAME,
            # Puts the parts of a line beyond 16 KiB together; its parser calls the line `log`.
            "multiline.parser": "cri",
            "DB": f"{STATE}/positions.db",
            "DB.locking": "true",
            "Read_from_Head": "On",
            "Skip_Long_Lines": "On",
            "Refresh_Interval": 5,
            "Rotate_Wait": 30,
            "storage.type": "filesystem",
        },
        "OUTPUT": {
            "Name": "cloudwatch_logs",
            "Match": "*",
            "region": plan.region,
            "log_group_name": pods_log_group(cluster_name),
            "log_stream_prefix": "pods/",
            "log_key": "log",
            # The stack made it, with a retention and a key.
            "auto_create_group": "false",
            "Retry_Limit": "no_limits",
            "storage.total_limit_size": f"{WAITING_MB}M",
        },
    }
    return "\n".join(
        f"[{section}]\n" + "".join(f"    {key}  {value}\n" for key, value in keys.items())
        for section, keys in sections.items()
    )


def _daemon_set(plan: Plan, size: LogCollectorPlan, content: str) -> Manifest:
    hosts = {f"logs-{number}": folder for number, folder in enumerate(FOLDERS)}
    container = {
        "name": LOG_COLLECTOR,
        "image": reference("aws-for-fluent-bit", registry=plan.config.image_registry),
        # Without the image's entry point, which loads plugins in Go.
        "command": ["/fluent-bit/bin/fluent-bit", "-c", f"{CONFIG_PATH}/{CONFIG_FILE}"],
        "resources": resources(millis(size.cpu_millis), mib(size.memory_mib), limit_memory=mib(LIMIT_MIB)),
        # The files are root's, and nobody else's to read. Root without capabilities is their owner and no more.
        "securityContext": {
            "runAsUser": 0,
            "runAsNonRoot": False,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            *({"name": name, "mountPath": folder, "readOnly": True} for name, folder in hosts.items()),
            {"name": "state", "mountPath": STATE},
            {"name": "config", "mountPath": CONFIG_PATH, "readOnly": True},
        ],
        **CAUSE_IN_STATUS,
    }
    pod = {
        "serviceAccountName": LOG_COLLECTOR,
        "automountServiceAccountToken": False,
        "priorityClassName": "system-node-critical",
        "nodeSelector": {STACK_LABEL: plan.stack},
        "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
        "terminationGracePeriodSeconds": GRACE_S + 5,
        "containers": [container],
        "volumes": [
            *({"name": name, "hostPath": {"path": folder, "type": "Directory"}} for name, folder in hosts.items()),
            {"name": "state", "hostPath": {"path": STATE, "type": "DirectoryOrCreate"}},
            {"name": "config", "configMap": {"name": LOG_COLLECTOR}},
        ],
    }
    # It reads its file at its start.
    metadata = {"labels": labels(plan, LOG_COLLECTOR), "annotations": {"modelfleet.dev/content": content}}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": _metadata(plan),
        "spec": {
            "selector": {"matchLabels": selector(LOG_COLLECTOR)},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "50%"}},
            "template": {"metadata": metadata, "spec": pod},
        },
    }


def _metadata(plan: Plan) -> Manifest:
    return {"name": LOG_COLLECTOR, "namespace": LOG_COLLECTOR_NAMESPACE, "labels": labels(plan, LOG_COLLECTOR)}
