"""Who watches a stack: `modelfleet:observability`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from pydantic.alias_generators import to_camel

from modelfleet.infra.names import METRICS_CLASS
from modelfleet.infra.planning.egress import HTTPS, PRIVATE, public
from modelfleet.infra.planning.network import subnet_blocks
from modelfleet.infra.planning.plan import AmpPlan, MonitoringPlan, OwnMonitoringPlan, Plan
from modelfleet.infra.planning.traces import address_of
from modelfleet.infra.stack import LoadedStack
from modelfleet.infra.stack.schema import PORT_PATTERN
from modelfleet.serving.config.errors import Finding, Severity

#: Share of the volume for metrics. The rest is for the log of the last hours and for compaction, which Prometheus does
#: not count. https://prometheus.io/docs/prometheus/latest/storage/#right-sizing-retention-size
KEEP: Final = 0.8
#: Of the EKS add-on: its namespace, https://docs.aws.amazon.com/eks/latest/userguide/community-addons.html, and the
#: project's own name and port of its Service, kubernetes/kube-state-metrics examples/standard/service.yaml.
STATES_NAMESPACE, STATES_PORT = "kube-state-metrics", 8080
STATES: Final = f"http://kube-state-metrics.{STATES_NAMESPACE}.svc:{STATES_PORT}"
#: Seconds between scrapes of Amazon's scraper, which takes no shorter ones.
#: https://docs.aws.amazon.com/prometheus/latest/userguide/AMP-collector-how-to.html
AMP_INTERVAL_S: Final = 30
#: The secret of the stack file with the URL to which alerts go: most receivers know a sender by it.
ALERT_WEBHOOK: Final = "alertWebhook"
#: Alertmanager takes braces for a template (notify/webhook/webhook.go).
WEBHOOK: Final = re.compile(rf"https?://[A-Za-z0-9.-]+{PORT_PATTERN}([/?][A-Za-z0-9._~:/?#@!$&'()*+,;=%-]*)?")
NOT_FOR_SNS: Final = (
    f"modelfleet:{ALERT_WEBHOOK}: is no public https:// address, and with metrics 'amp' SNS sends there, which reaches "
    "no Service of the cluster, and would send the URL itself unencrypted over http://"
)
#: Keys that say how a Prometheus of the stack's own runs.
ONLY_OWN: Final = {
    "retention_days": "retentionDays",
    "volume_gib": "volumeGib",
    "storage_class": "storageClass",
    "webhook_service": "webhookService",
    "kube_state_metrics": "kubeStateMetrics",
}


def monitoring_plan(stack: LoadedStack) -> MonitoringPlan | None:
    """The objects for the cluster's Prometheus Operator; None where the stack asks for none."""
    wanted = stack.config.observability
    if wanted.metrics != "prometheus" or stack.config.target.on_this_machine:
        return None
    return MonitoringPlan(wanted.labels, wanted.dashboard_labels)


def own_monitoring_plan(stack: LoadedStack) -> OwnMonitoringPlan | None:
    """The Prometheus that the stack runs; None where it runs none."""
    wanted, target = stack.config.observability, stack.config.target
    if wanted.metrics != "own":
        return None
    makes_states = target.makes_cluster and wanted.kube_state_metrics is None
    states = STATES if makes_states else wanted.kube_state_metrics
    asked = [address_of(url) for url in (wanted.webhook_service, states) if url]
    sends = ALERT_WEBHOOK in stack.secrets
    services = tuple((service, port) for port, service in asked if service)
    makes_class = target.makes_cluster and wanted.storage_class is None
    return OwnMonitoringPlan(
        retention_days=wanted.retention_days,
        volume_gib=wanted.volume_gib,
        keep_mib=int(wanted.volume_gib * 1024 * KEEP),
        storage_class=f"{stack.config.kubernetes.namespace_of(stack.name)}-{METRICS_CLASS}"
        if makes_class
        else wanted.storage_class,
        makes_class=makes_class,
        sends=sends,
        states=urlsplit(states).netloc if states else None,
        makes_states=makes_states,
        services=services,
        out=(public("alerts", HTTPS),) if sends and not wanted.webhook_service else (),
    )


def webhook_refused(url: str, plan: Plan) -> str | None:
    """Why alerts cannot go to the webhook, or None; the plan knows no secret, so the run asks this. Never has the URL.

    In a cluster policies let Alertmanager out to what the plan knows alone. SNS sends from outside of it.
    """
    if not WEBHOOK.fullmatch(url):
        return f"modelfleet:{ALERT_WEBHOOK}: is no http:// or https:// URL"
    if plan.amp is not None:
        return None if url.startswith("https://") and _public(url) else NOT_FOR_SNS
    if plan.target.on_this_machine:
        return None
    service = plan.config.observability.webhook_service
    if service is not None:
        message = (
            f"modelfleet:{ALERT_WEBHOOK}: is not at {service}, which modelfleet:observability.webhookService names"
        )
        return message if address_of(url) != address_of(service) else None
    if _public(url) and address_of(url)[0] == HTTPS:
        return None
    return (
        f"modelfleet:{ALERT_WEBHOOK}: is at no public address at port 443, and Alertmanager may reach no other; where "
        "it is a Service, name that in modelfleet:observability.webhookService"
    )


def _public(url: str) -> bool:
    """Whether it may be outside of a cluster, as far as it tells: no Service, no private address, no bare name."""
    host = (urlsplit(url).hostname or "").strip(".")
    try:
        return ip_address(host).is_global
    except ValueError:
        return "." in host and address_of(url)[1] is None


def amp_plan(stack: LoadedStack) -> AmpPlan | None:
    """The workspace of Amazon Managed Service for Prometheus; None where the stack makes none.

    Of subnets that exist only AWS knows the addresses.
    """
    wanted, network = stack.config.observability, stack.config.network
    if wanted.metrics != "amp" or not stack.config.target.makes_cluster:
        return None
    networks = PRIVATE if network.vpc_id else subnet_blocks(network.cidr, network.zones).private
    return AmpPlan(networks, tuple(wanted.alert_emails), sends=ALERT_WEBHOOK in stack.secrets)


def monitoring_findings(stack: LoadedStack) -> list[Finding]:
    """An operator has to be there, and to be let in."""
    return [*_operator_findings(stack), *_own_findings(stack), *_amp_findings(stack), *_webhook_findings(stack)]


def _webhook_findings(stack: LoadedStack) -> Iterator[Finding]:
    metrics = stack.config.observability.metrics
    if ALERT_WEBHOOK in stack.secrets and metrics not in ("own", "amp"):
        message = f"is where own or amp sends alerts, and metrics is '{metrics}'; set it to one of them"
        yield stack.finding((ALERT_WEBHOOK,), message)


def _amp_findings(stack: LoadedStack) -> Iterator[Finding]:
    """Only target eks has a cluster of which the stack knows that Amazon's scraper reaches it."""
    wanted = stack.config.observability
    if wanted.metrics == "amp" and not stack.config.target.makes_cluster:
        message = "found 'amp', which watches the cluster of target eks alone; say own, or prometheus in a cluster"
        yield stack.finding(("observability", "metrics"), message)
    if wanted.alert_emails and wanted.metrics != "amp":
        message = f"is for Amazon Managed Service for Prometheus, and metrics is '{wanted.metrics}'; set it to amp"
        yield stack.finding(("observability", "alertEmails"), message)
    for place, one in enumerate(wanted.alert_emails):
        if one in wanted.alert_emails[:place]:
            yield stack.finding(("observability", "alertEmails", place), f"found '{one}' twice; remove one")


def _own_findings(stack: LoadedStack) -> list[Finding]:
    """Keys without a Prometheus of the stack's own, and an address that it may not reach."""
    wanted, here = stack.config.observability, stack.config.target.on_this_machine
    if wanted.metrics != "own":
        message = f"is for a Prometheus of the stack's own, and metrics is '{wanted.metrics}'; set it to own"
        set_here = [key for name, key in ONLY_OWN.items() if name in wanted.model_fields_set]
        return [stack.finding(("observability", key), message) for key in set_here]
    found = [*_taken_ports(stack)] if here else []
    if here and wanted.storage_class is not None:
        message = f"found '{wanted.storage_class}', and on this machine metrics are files; remove it"
        found.append(stack.finding(("observability", "storageClass"), message))
    if here and wanted.kube_state_metrics is not None:
        message = f"found '{wanted.kube_state_metrics}', and on this machine there is no cluster; remove it"
        found.append(stack.finding(("observability", "kubeStateMetrics"), message))
    if here and wanted.webhook_service is not None:
        message = f"found '{wanted.webhook_service}', and on this machine there is no cluster; remove it"
        found.append(stack.finding(("observability", "webhookService"), message))
    elif wanted.webhook_service is not None and ALERT_WEBHOOK not in stack.secrets:
        message = f"has no URL; set it: `pulumi config set --secret modelfleet:{ALERT_WEBHOOK} --stack {stack.name}`"
        found.append(stack.finding(("observability", "webhookService"), message))
    return found


def _taken_ports(stack: LoadedStack) -> Iterator[Finding]:
    """A port of Prometheus or Alertmanager that another part of the stack has."""
    ports = {to_camel(name): port for name, port in stack.config.local if name.endswith("_port")}
    for key in ("prometheusPort", "alertmanagerPort"):
        if others := [other for other, port in ports.items() if port == ports[key] and other != key]:
            message = f"found {ports[key]}, which {others[0]} has too; each service needs its own port"
            yield stack.finding(("local", key), message)


def _operator_findings(stack: LoadedStack) -> list[Finding]:
    at = ("observability", "metrics")
    if stack.config.observability.metrics != "prometheus":
        return []
    if stack.config.target.on_this_machine:
        message = (
            "found 'prometheus', which is an operator in a cluster; say own for a Prometheus that `up` starts here, or "
            f"write files for any other: `modelfleet observability --stack {stack.name} --out DIR`"
        )
        return [stack.finding(at, message)]
    if not stack.config.kubernetes.scrapers:
        message = "found 'prometheus', but nobody may read the metrics; name its pods in modelfleet:kubernetes.scrapers"
        return [stack.finding(at, message)]
    if stack.config.target.makes_cluster:
        message = (
            "found 'prometheus', and a new cluster has no Prometheus Operator: bring the cluster up without this key, "
            "install the operator, then set it"
        )
        return [stack.finding(at, message, Severity.NOTICE)]
    return []
