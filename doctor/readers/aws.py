"""AWS: the account's limits, the cluster, its node groups and why they get no machines, roles, bucket and mirror.

It reads sts:GetCallerIdentity, ec2:Describe*, servicequotas:GetServiceQuota, eks:Describe*, eks:List*,
autoscaling:DescribeAutoScalingGroups, autoscaling:DescribeScalingActivities, and s3:HeadBucket and HeadObject; what is
refused is said, the rest still speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.subject import Subject
from modelfleet.infra.aws.facts_boto3 import CONFIG, read_facts_with_boto3
from modelfleet.infra.aws.preflight import preflight
from modelfleet.infra.aws.site import cluster_name
from modelfleet.infra.names import MIRROR_POOL, POOL_LABEL, READERS, WRITER
from modelfleet.infra.planning.plan import Plan
from modelfleet.serving.config.errors import SetupError, errors_in

#: Newest activities of an Auto Scaling group that are looked at.
ACTIVITIES: Final = 10
Client = Callable[[str], Any]


def read(subject: Subject, seconds: float) -> Reading:  # noqa: ARG001 - boto3 has limits of its own
    """All facts that the caller may see."""
    plan = subject.plan
    if plan is None or not plan.region:
        return Reading(
            Layer.AWS, unread="the stack's files make no plan, so neither its region nor its names are known"
        )

    # One for all: each session reads the description of every service anew, which takes most of a second.
    session = boto3.Session(profile_name=plan.source.profile, region_name=plan.region)

    def client(service: str) -> Any:
        return session.client(service, config=CONFIG)

    found, refused = list[Evidence](), list[str]()
    for part in (_cluster, _identities, _bucket, partial(_preflight, session)):
        try:
            found += part(plan, client)
        except (BotoCoreError, ClientError, SetupError) as error:
            refused.append(str(error))
    return Reading(Layer.AWS, tuple(found), "; ".join(dict.fromkeys(refused)) or None)


def _cluster(plan: Plan, client: Client) -> Iterator[Evidence]:
    eks, name = client("eks"), cluster_name(plan)
    try:
        cluster = eks.describe_cluster(name=name)["cluster"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceNotFoundException":
            raise
        yield _fact("cluster", f"cluster {name}", f"ABSENT: EKS has no cluster {name} in {plan.region}")
        return
    if cluster["status"] not in ("ACTIVE", "UPDATING"):
        yield _fact("cluster", f"cluster {name}", f"{cluster['status']}: the cluster is {cluster['status'].lower()}")
    for issue in cluster.get("health", {}).get("issues", []):
        yield _fact("cluster", f"cluster {name}", f"{issue.get('code')}: {issue.get('message')}")
    scaling = client("autoscaling")
    for group in eks.list_nodegroups(clusterName=name)["nodegroups"]:
        yield from node_group(eks.describe_nodegroup(clusterName=name, nodegroupName=group)["nodegroup"], scaling, plan)


def node_group(group: Mapping[str, Any], scaling: Any, plan: Plan) -> Iterator[Evidence]:
    """A node group's health issues and its latest failed launches, which are `launch` while it still lacks machines."""
    name = f"node group {group['nodegroupName']}"
    pool = (group.get("labels") or {}).get(POOL_LABEL)  # the name begins with the pool's, as do those of `<pool>-big`
    copied = pool == MIRROR_POOL
    models = tuple(model.slug for model in plan.models if model.pool == pool or (copied and model.mirror.prefix))
    for issue in group.get("health", {}).get("issues", []):
        yield _fact("nodegroup", name, f"{issue.get('code')}: {issue.get('message')}", models=models)
    if group.get("status", "").endswith("FAILED"):
        yield _fact("nodegroup", name, f"{group['status']}: the node group's last operation failed", models=models)
    for one in group.get("resources", {}).get("autoScalingGroups", []):
        asked = {"AutoScalingGroupName": one["name"], "MaxRecords": ACTIVITIES}
        kind = "launch" if _is_short(one["name"], scaling) else "activity"  # the newest; those before it only were
        for activity in scaling.describe_scaling_activities(**asked)["Activities"]:
            if activity["StatusCode"] == "Successful":
                break  # newest first: it got a machine after what failed before
            if activity["StatusCode"] == "Failed":
                time = activity["StartTime"].isoformat(timespec="seconds")
                text = activity.get("StatusMessage") or activity.get("Description", "")
                yield _fact(kind, name, text, time, models)
                kind = "activity"


def _is_short(group: str, scaling: Any) -> bool:
    """Whether an Auto Scaling group wants more machines than it has now, so that its failures still count."""
    for one in scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"]:
        running = [machine for machine in one["Instances"] if machine["LifecycleState"] == "InService"]
        return len(running) < int(one["DesiredCapacity"])
    return False


def _identities(plan: Plan, client: Client) -> Iterator[Evidence]:
    """Service accounts without a Pod Identity association: their pods have no role."""
    wanted = {plan.namespace: READERS, plan.mirror_namespace: (WRITER,)} if plan.bucket.name else {}
    try:
        for namespace, accounts in wanted.items():
            asked = {"clusterName": cluster_name(plan), "namespace": namespace}
            answer = client("eks").list_pod_identity_associations(**asked)
            known = {one["serviceAccount"] for one in answer["associations"]}
            for account in (one for one in accounts if one not in known):
                text = f"service account {account} has no Pod Identity association"
                yield _fact("identity", f"service account {account}", text)
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            return  # no cluster, which is said
        raise


def _bucket(plan: Plan, client: Client) -> Iterator[Evidence]:
    bucket, s3 = plan.bucket.name, client("s3")
    if bucket is None:
        return
    if code := _missing(lambda: s3.head_bucket(Bucket=bucket)):
        yield _fact("bucket", f"bucket {bucket}", f"{code}: {bucket}")
        return
    if _missing(lambda: s3.head_object(Bucket=bucket, Key=plan.code.key)):
        yield _fact("code", f"s3://{bucket}/{plan.code.key}", "the serving code of this version is not in the bucket")
    for model in plan.models:
        key = f"{model.mirror.prefix}/manifest.json"
        if model.mirror.prefix and _missing(lambda key=key: s3.head_object(Bucket=bucket, Key=key)):  # type: ignore[misc]
            text = "the mirror has no manifest, so its copy is not complete"
            yield _fact("manifest", f"s3://{bucket}/{key}", text, models=(model.slug,))


def _missing(call: Callable[[], Any]) -> str | None:
    """`404` or `403` when S3 says so; None when the thing is there."""
    try:
        call()
    except ClientError as error:
        code = str(error.response["ResponseMetadata"]["HTTPStatusCode"])
        if code in ("403", "404"):
            return code
        raise
    return None


def _preflight(session: boto3.Session, plan: Plan, client: Client) -> Iterator[Evidence]:  # noqa: ARG001 - of four alike
    for finding in errors_in(preflight(plan, read_facts_with_boto3(plan, session))):
        text = f"{finding.path}: {finding.message}"
        yield Evidence(Layer.AWS, "preflight", "the account", text, file=finding.file, line=finding.line)


def _fact(kind: str, name: str, text: str, time: str = "", models: tuple[str, ...] = ()) -> Evidence:
    return Evidence(Layer.AWS, kind, name, text, time, models)
