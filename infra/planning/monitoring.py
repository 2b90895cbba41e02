"""Who watches a stack: `modelfleet:observability`."""

from __future__ import annotations

from modelfleet.infra.planning.plan import MonitoringPlan
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding, Severity


def monitoring_plan(stack: LoadedStack) -> MonitoringPlan | None:
    """The objects for the cluster's Prometheus Operator; None where the stack asks for none."""
    wanted = stack.config.observability
    if wanted.metrics == "none" or stack.config.target.on_this_machine:
        return None
    return MonitoringPlan(wanted.labels, wanted.dashboard_labels)


def monitoring_findings(stack: LoadedStack) -> list[Finding]:
    """An operator has to be there, and to be let in; and pods, where their output has a form."""
    return [*_operator_findings(stack), *_log_findings(stack)]


def _log_findings(stack: LoadedStack) -> list[Finding]:
    if stack.config.observability.logs == "text" or not stack.config.target.on_this_machine:
        return []
    message = (
        "found 'json', which is how pods write; remove it: on this machine Ray's logs are files, as Ray makes them"
    )
    return [stack.finding(("observability", "logs"), message)]


def _operator_findings(stack: LoadedStack) -> list[Finding]:
    at = ("observability", "metrics")
    if stack.config.observability.metrics == "none":
        return []
    if stack.config.target.on_this_machine:
        message = (
            "found 'prometheus', which is an operator in a cluster; remove it, and write files for a Prometheus here: "
            f"`modelfleet observability --stack {stack.name} --out DIR`"
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
