"""Every IAM document of a fleet, from the plan alone. `AwsFleet` makes roles from them; a security team reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.addons import BEFORE_NODES, after_nodes
from modelfleet.infra.aws.facts import AccountFacts
from modelfleet.infra.aws.operator import operator
from modelfleet.infra.aws.policies import Document, Statement
from modelfleet.infra.aws.registry import ecr_image
from modelfleet.infra.aws.site import Site, image_log_group, image_project, site_of
from modelfleet.infra.names import (
    AUTOSCALER,
    AUTOSCALER_NAMESPACE,
    LOAD_BALANCER_ACCOUNT,
    LOG_COLLECTOR,
    LOG_COLLECTOR_NAMESPACE,
    READERS,
    SEALER,
    SEALS,
    USAGE,
    WRITER,
)
from modelfleet.infra.planning.plan import BucketPlan, ImagePlan, Plan

HEAD, WORKER = READERS
#: Used when the stack file names no account (`modelfleet:accountId`).
NO_ACCOUNT = "000000000000"


@dataclass(frozen=True)
class PodAccess:
    """What the role of one service account may do. `key` is its use of the bucket's key: `read`, `write` or empty.

    With `signs` it signs with the key of manifests that the stack makes, which has no ARN before.
    """

    service_account: str
    namespace: str
    statements: Sequence[Statement]
    key: str = ""
    signs: bool = False


def pod_access(site: Site, plan: Plan) -> list[PodAccess]:
    """Replicas read weights and code and write records of usage, the mirror Job also writes weights, the autoscaler
    scales, the load balancer's controller registers the gateway's pods, and the collector writes logs.

    Of other people's buckets replicas read what models name, and the Job what it copies. Where a pool seals compile
    caches, only the warm-up Jobs write these, and replicas read them.
    """
    partition, bucket = site.partition, plan.bucket
    balancing = policies.target_registration(
        stack=site.stack, partition=partition, region=site.region, account=site.account
    )
    loaded = [policies.CODE, policies.MODELS]
    reads = policies.read_objects(bucket.name or "", loaded, partition=partition)
    with_seals = policies.read_objects(bucket.name or "", [*loaded, SEALS], partition=partition)
    sealing = policies.put_objects(bucket.name or "", [SEALS], partition=partition)
    run = with_seals if plan.sealed_pools else reads
    recording = (
        policies.put_objects(bucket.name or "", usage_prefixes(bucket), partition=partition) if bucket.usage else []
    )
    writes = policies.write_objects(bucket.name or "", [policies.MODELS], partition=partition)
    foreign = policies.read_existing(bucket.read_only, partition=partition)
    copied = policies.read_existing(bucket.copied_from, partition=partition)
    key = plan.manifest_key
    signs = policies.sign_manifests(key.kms) if key and key.kms else []
    own = key is not None and key.made
    scaling = policies.cluster_autoscaler(
        cluster_name=site.cluster_name, partition=partition, region=site.region, account=site.account
    )
    logging = policies.write_logs(site.pods_log_group, partition=partition, region=site.region, account=site.account)
    return [
        PodAccess(HEAD, site.namespace, [*run, *foreign], "read"),
        PodAccess(WORKER, site.namespace, [*run, *foreign, *recording], "write" if recording else "read"),
        PodAccess(WRITER, plan.mirror_namespace, [*writes, *reads, *copied, *signs], "write", signs=own),
        *([PodAccess(SEALER, plan.mirror_namespace, [*sealing, *run, *foreign], "write")] if plan.sealed_pools else ()),
        PodAccess(AUTOSCALER, AUTOSCALER_NAMESPACE, scaling),
        *([PodAccess(LOAD_BALANCER_ACCOUNT, site.namespace, balancing)] if plan.front_door else ()),
        *([PodAccess(LOG_COLLECTOR, LOG_COLLECTOR_NAMESPACE, logging)] if plan.log_collector else ()),
    ]


def usage_prefixes(bucket: BucketPlan) -> list[str]:
    """Where replicas write: records of requests, and of node time. Only where they may (`bucket.usage`)."""
    return [f"{USAGE}/nodes{rest}", f"{USAGE}{rest}"] if (rest := (bucket.usage or "").removeprefix(USAGE)) else []


def image_documents(site: Site, plans: Sequence[ImagePlan], bucket: str) -> dict[str, Document]:
    """Who may use the role of the builds, and what a build may do, without the use of the bucket's key."""
    here = f"{site.region}:{site.account}"
    project = f"arn:{site.partition}:codebuild:{here}:project/{image_project(site.cluster_name)}"
    bases = [base for plan in plans if (base := ecr_image(plan.base))]
    own = [base for base in bases if (base.account, base.region) == (site.account, site.region)]
    repositories = f"arn:{site.partition}:ecr:{here}:repository"
    statements = policies.build_image(
        bucket_arn=f"arn:{site.partition}:s3:::{bucket}",
        key=plans[0].source.key,
        repository_arns=[f"{repositories}/{plan.repository}" for plan in plans],
        log_group_arn=f"arn:{site.partition}:logs:{here}:log-group:{image_log_group(site.cluster_name)}",
        base_arns=[f"{repositories}/{base.repository}" for base in own],
    )
    return {
        "trust": policies.build_trust(project_arn=project, account=site.account),
        "access": policies.document(statements),
    }


def site_without_account(plan: Plan) -> Site:
    """The site as far as the files describe it, without querying AWS. The account is the stack file's, or zeros."""
    region = plan.region or ""
    partition = {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(region.rpartition("-")[0].rpartition("-")[0], "aws")
    account = plan.config.account_id or NO_ACCOUNT
    return site_of(plan, AccountFacts(account, partition, region, "", (), {}, {}))


def iam_documents(plan: Plan, site: Site) -> dict[str, Document]:
    """Trust, permission, key and bucket policies, by a short name such as `ray-worker-access`.

    `operator` is for whoever runs `pulumi up`; no component makes it.

    The bucket's key, that of manifests and the workspace for metrics have no ARN until they are made; here these end in
    `BUCKET-KEY-ID`, `MANIFEST-KEY-ID` and `WORKSPACE-ID`, and the topic of alerts lacks its suffix.
    """
    where = {"partition": site.partition, "account": site.account}
    may = operator(
        site,
        bucket=plan.bucket,
        images=plan.images,
        names=plan.stack,
        endpoints=plan.config.network.interface_endpoints,
        store=plan.head_storage is not None,
        front_door=plan.front_door is not None,
        web_acl=plan.config.gateway.web_acl,
        signs=plan.manifest_key is not None and plan.manifest_key.made,
        amp=plan.amp is not None,
    )
    found = {
        **policies.numbered("operator", may),
        "cluster-trust": policies.service_trust("eks.amazonaws.com"),
        "node-trust": policies.service_trust("ec2.amazonaws.com"),
        "cluster-key": policies.cluster_key(**where, region=site.region, log_groups=site.log_groups),
    }
    for spec in (*BEFORE_NODES, *after_nodes(plan)):
        if spec.service_account:
            found[f"{spec.name}-trust"] = _trust(site, "kube-system", spec.service_account)
    key_arn = f"arn:{site.partition}:kms:{site.region}:{site.account}:key/BUCKET-KEY-ID"
    for access in pod_access(site, plan):
        name = access.service_account
        found[f"{name}-trust"] = _trust(site, access.namespace, name)
        found |= policies.numbered(f"{name}-access", access.statements)
        if plan.bucket.create and access.key:
            use = policies.use_key(key_arn, write=access.key == "write", region=site.region)
            found[f"{name}-uses-key"] = policies.document(use)
        if access.signs:
            sign = policies.sign_with_own_key(key_arn.replace("BUCKET-KEY-ID", "MANIFEST-KEY-ID"))
            found[f"{name}-signs"] = policies.document(sign)
            found["manifest-key"] = policies.signing_key(**where, names=plan.stack)
    if plan.image:
        own = image_documents(site, plan.images, plan.bucket.name or "")
        found |= {f"image-build-{short}": document for short, document in own.items()}
        if plan.bucket.create:
            found["image-build-uses-key"] = policies.document(
                policies.use_key(key_arn, write=False, region=site.region)
            )
    if plan.amp:
        place = f"{site.region}:{site.account}"
        found["alerts-topic"] = policies.alerts_topic(
            f"arn:{site.partition}:sns:{place}:{plan.stack}-prometheus-alerts",
            workspace_arn=f"arn:{site.partition}:aps:{place}:workspace/WORKSPACE-ID",
            account=site.account,
        )
    if plan.bucket.create:
        found["bucket-key"] = policies.account_key(**where)
        found["bucket"] = policies.tls_only(plan.bucket.name or "", partition=site.partition)
    return found


def _trust(site: Site, namespace: str, service_account: str) -> Document:
    return policies.pod_trust(cluster_arn=site.cluster_arn, namespace=namespace, service_account=service_account)
