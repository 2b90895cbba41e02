"""Where a fleet runs, and what its resources share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelfleet.infra.aws.facts import AccountFacts
from modelfleet.infra.names import MANAGED_BY_TAG, STACK_LABEL, pods_log_group
from modelfleet.infra.planning.plan import Plan


@dataclass(frozen=True)
class Home:
    """What a stack's AWS resources share, whatever the target. `tags` are on every resource that takes tags."""

    stack: str
    partition: str
    tags: Mapping[str, str]

    @property
    def own_tags(self) -> Mapping[str, str]:
        """Our tags, which say whose a resource is."""
        return own_tags(self.stack)

    def tagged(self, name: str, **more: str) -> dict[str, str]:
        """The stack's tags and a `Name`."""
        return {**self.tags, "Name": name, **more}


@dataclass(frozen=True)
class Site(Home):
    """Account, region and names of one stack that has its own EKS cluster."""

    account: str
    region: str
    cluster_name: str
    namespace: str
    protect: bool

    @property
    def cluster_arn(self) -> str:
        """The cluster's ARN, known before the cluster exists."""
        return f"arn:{self.partition}:eks:{self.region}:{self.account}:cluster/{self.cluster_name}"

    @property
    def log_group(self) -> str:
        """The log group that EKS writes to. It is ours only if it exists before the cluster."""
        return _log_group(self.cluster_name)

    @property
    def pods_log_group(self) -> str:
        """The log group of what pods write; made only where the plan has a collector."""
        return pods_log_group(self.cluster_name)

    @property
    def log_groups(self) -> tuple[str, str]:
        """The log groups that the cluster's key may encrypt."""
        return self.log_group, self.pods_log_group


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
    """The name of the stack's EKS cluster, known before the cluster exists."""
    return f"modelfleet-{plan.stack}"


def log_group(plan: Plan) -> str:
    """The name of the stack's log group, known before the cluster exists."""
    return _log_group(cluster_name(plan))


def _log_group(cluster: str) -> str:
    return f"/aws/eks/{cluster}/cluster"


def image_project(cluster: str) -> str:
    """The name of the CodeBuild project that makes the stack's images."""
    return f"{cluster}-image"


def image_log_group(cluster: str) -> str:
    """The log group of that project, by the name that CodeBuild would give it."""
    return f"/aws/codebuild/{image_project(cluster)}"


def stack_tags(plan: Plan) -> dict[str, str]:
    """Tags of every resource: the stack file's and ours. Ours win."""
    return {**plan.config.tags, **own_tags(plan.stack)}


def own_tags(stack: str) -> dict[str, str]:
    """The tags of every resource of a stack that has tags."""
    return {STACK_LABEL: stack, MANAGED_BY_TAG: "pulumi"}
