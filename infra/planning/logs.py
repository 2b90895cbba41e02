"""What pods write, and where it goes: `modelfleet:observability.logs`."""

from __future__ import annotations

from typing import Final, Literal

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.names import LOG_COLLECTOR
from modelfleet.infra.planning.plan import LogCollectorPlan
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding

#: The word of the collector's row in infra/catalog/daemon-sets.csv.
WORD: Final = "logs"


def log_format(stack: LoadedStack) -> Literal["text", "json"]:
    """How pods write. CloudWatch Logs finds the fields of a line that is an object."""
    return "text" if stack.config.observability.logs == "text" else "json"


def with_collector(stack: LoadedStack, catalog: Catalog) -> Catalog:
    """The catalog in which each node keeps room for the collector, where the stack has one."""
    return catalog.with_daemon_sets(WORD) if stack.config.observability.logs == "cloudwatch" else catalog


def log_collector_plan(stack: LoadedStack, catalog: Catalog) -> LogCollectorPlan | None:
    """What sends the pods' output to CloudWatch Logs; None where the stack asks for none."""
    wanted = stack.config.observability
    if wanted.logs != "cloudwatch":
        return None
    size = next(one for one in catalog.daemon_sets if one.name == LOG_COLLECTOR)
    return LogCollectorPlan(wanted.log_retention_days, size.cpu_millis, size.memory_mib)


def log_findings(stack: LoadedStack) -> list[Finding]:
    """Pods, where their output has a form; a cluster of the stack's own, where it is sent; and days for that alone."""
    wanted, at = stack.config.observability, ("observability", "logs")
    found = []
    if wanted.logs != "cloudwatch" and "log_retention_days" in wanted.model_fields_set:
        message = f"is for CloudWatch Logs, and logs is '{wanted.logs}'; set it to cloudwatch"
        found.append(stack.finding(("observability", "logRetentionDays"), message))
    if wanted.logs != "text" and stack.config.target.on_this_machine:
        message = (
            f"found '{wanted.logs}', which is for pods; remove it: on this machine logs are files, as Ray makes them"
        )
        found.append(stack.finding(at, message))
    elif wanted.logs == "cloudwatch" and not stack.config.target.makes_cluster:
        message = (
            "found 'cloudwatch', which is for target eks, where the stack makes log group, role and collector; say "
            "json, and let the cluster's own collector take what pods write"
        )
        found.append(stack.finding(at, message))
    return found
