"""Where a fleet lands, and what every resource of it shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infra.aws.facts import AccountFacts
from infra.planning.plan import Plan


@dataclass(frozen=True)
class Site:
    """Account, region and names of one stack. `tags` are on every resource that takes tags."""

    stack: str
    account: str
    region: str
    partition: str
    cluster_name: str
    namespace: str
    protect: bool
    tags: Mapping[str, str]

    def tagged(self, name: str, **more: str) -> dict[str, str]:
        """The stack's tags and a `Name`."""
        return {**self.tags, "Name": name, **more}

    @property
    def cluster_arn(self) -> str:
        """The cluster's ARN, known before the cluster is."""
        return f"arn:{self.partition}:eks:{self.region}:{self.account}:cluster/{self.cluster_name}"

    @property
    def log_group(self) -> str:
        """The log group into which EKS writes; it is ours only if it is there before the cluster."""
        return f"/aws/eks/{self.cluster_name}/cluster"


def site_of(plan: Plan, facts: AccountFacts) -> Site:
    """The site of a plan in an account."""
    return Site(
        stack=plan.stack,
        account=facts.account,
        region=facts.region,
        partition=facts.partition,
        cluster_name=cluster_name(plan),
        namespace=plan.namespace,
        protect=plan.config.cluster.deletion_protection,
        tags=stack_tags(plan),
    )


def cluster_name(plan: Plan) -> str:
    """The name of the stack's EKS cluster, known before the cluster is."""
    return f"modelfleet-{plan.stack}"


def stack_tags(plan: Plan) -> dict[str, str]:
    """Tags of every resource: the stack file's, and ours, which win."""
    return {**plan.config.tags, "modelfleet.dev/stack": plan.stack, "modelfleet.dev/managed-by": "pulumi"}
