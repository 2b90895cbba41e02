"""A stack's bucket and the serving code in it, for the targets `eks` and `kubernetes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws.code import Code
from modelfleet.infra.aws.mirror import Mirror
from modelfleet.infra.aws.site import Home, Site, stack_tags
from modelfleet.infra.planning.plan import Plan


@dataclass(frozen=True)
class Storage:
    """`mirror` is None for an existing bucket; `ready` is what a workload waits for."""

    mirror: Mirror | None
    bucket: pulumi.Output[str]
    ready: Sequence[pulumi.Resource]


def make_storage(
    name: str,
    plan: Plan,
    *,
    code: pulumi.Asset | None,
    site: Site | None = None,
    opts: pulumi.ResourceOptions | None = None,
) -> Storage:
    """Make the bucket, unless the stack names an existing one, and put `code` in it with the run's AWS credentials.

    With `site` the bucket has the stack's own key. Without it the cluster is not ours, and its owner decides how
    pods reach the bucket (`docs/kubernetes.md`).
    """
    home = site or Home(plan.stack, aws.get_partition().partition, stack_tags(plan))
    mirror = None
    if plan.bucket.create:
        account = site.account if site else None
        mirror = Mirror(f"{name}-mirror", home, plan.bucket, key_account=account, opts=opts)
    bucket = mirror.bucket_name if mirror else pulumi.Output.from_input(plan.bucket.name or "")
    if code is None:
        return Storage(mirror, bucket, [])
    after = mirror.ready if mirror else ()
    uploaded = Code(f"{name}-code", home, plan.code, bucket=bucket, source=code, after=after, opts=opts)
    return Storage(mirror, bucket, [uploaded.object])
