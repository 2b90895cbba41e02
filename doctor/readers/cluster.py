"""The way to a stack's cluster: the user's kubeconfig, or for a cluster that the stack makes, what EKS says of it."""

from __future__ import annotations

from modelfleet.doctor.subject import Subject
from modelfleet.infra.kubernetes.api import Api, Unreachable


def connect(subject: Subject) -> Api:
    """A connection of its own for each caller; raises `Unreachable` with what is wrong."""
    settings = subject.stack.config.kubernetes
    if not subject.stack.config.target.makes_cluster:
        return Api.from_kubeconfig(settings.kubeconfig, settings.context)
    return Api.from_kubeconfig(_of_eks(subject))


def _of_eks(subject: Subject) -> str:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    from modelfleet.infra.aws.facts_boto3 import CONFIG
    from modelfleet.infra.aws.kubeconfig import kubeconfig
    from modelfleet.infra.aws.site import cluster_name

    plan = subject.plan
    if plan is None or not plan.region:
        raise Unreachable("the stack's files make no plan, so its cluster's name and region are not known")
    try:
        session = boto3.Session(profile_name=plan.source.profile, region_name=plan.region)
        found = session.client("eks", config=CONFIG).describe_cluster(name=cluster_name(plan))
    except (BotoCoreError, ClientError) as error:
        raise Unreachable(f"EKS does not say where the cluster {cluster_name(plan)} is: {error}") from error
    cluster = found["cluster"]
    return kubeconfig(
        name=cluster["name"],
        endpoint=cluster["endpoint"],
        certificate_authority=cluster["certificateAuthority"]["data"],
        region=plan.region,
        profile=plan.source.profile,
    )
