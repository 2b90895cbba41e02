"""`Storage`: for an existing cluster, the bucket of weights and code, by the AWS credentials that the run has.

On EKS `infra/aws` makes them, encrypted with a key of the stack, readable by the pods' roles. Here the cluster's owner
decides how pods reach the bucket (`docs/kubernetes.md`).
"""

from __future__ import annotations

import pulumi
import pulumi_aws as aws

from infra.planning.plan import Plan


class Storage(pulumi.ComponentResource):
    """Children: the bucket, closed to the public, unless the stack names an existing one; the code's object."""

    ready: list[pulumi.Resource]

    def __init__(
        self, name: str, plan: Plan, *, code: pulumi.Asset, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("modelfleet:kubernetes:Storage", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        bucket: pulumi.Input[str] = plan.bucket.name or ""
        if plan.bucket.create:
            # Weights can be copied again, so the bucket goes with the stack unless it is protected.
            made = aws.s3.Bucket(
                f"{name}-bucket",
                bucket=plan.bucket.name,
                force_destroy=not plan.bucket.protect,
                opts=pulumi.ResourceOptions(parent=self, protect=plan.bucket.protect),
            )
            aws.s3.BucketPublicAccessBlock(
                f"{name}-private",
                bucket=made.bucket,
                block_public_acls=True,
                block_public_policy=True,
                ignore_public_acls=True,
                restrict_public_buckets=True,
                opts=child,
            )
            bucket = made.bucket
        artifact = aws.s3.BucketObjectv2(
            f"{name}-code-{plan.code.sha256[:12]}",
            bucket=bucket,
            key=plan.code.key,
            source=code,
            content_type="application/zip",
            opts=child,
        )
        self.ready = [artifact]
        self.register_outputs({})
