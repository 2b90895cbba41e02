"""Zips in the stack's bucket, named by their content: immutable, one per version. The serving code is one."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws.site import Home
from modelfleet.infra.planning.plan import CodeArtifact, ImageSource


class Code(pulumi.ComponentResource):
    """Child: the object. A new version is a new object; the old one goes at the end of a run that reached all models.

    An application that a stopped release left on earlier code loads it again whenever a replica starts.
    """

    def __init__(
        self,
        name: str,
        home: Home,
        artifact: CodeArtifact,
        *,
        bucket: pulumi.Input[str],
        source: pulumi.Asset,
        after: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:Code", name, None, opts)
        child = pulumi.ResourceOptions(parent=self, depends_on=[*after])
        self.object = zip_object(name, home, artifact, bucket=bucket, source=source, opts=child)
        self.register_outputs({"key": self.object.key})


def zip_object(
    name: str,
    home: Home,
    artifact: CodeArtifact | ImageSource,
    *,
    bucket: pulumi.Input[str],
    source: pulumi.Asset,
    opts: pulumi.ResourceOptions,
) -> aws.s3.BucketObjectv2:
    """A zip in the stack's bucket, named by its content."""
    return aws.s3.BucketObjectv2(
        f"{name}-{artifact.sha256[:12]}",
        bucket=bucket,
        key=artifact.key,
        source=source,
        content_type="application/zip",
        # S3 allows ten tags on an object, AWS 50 elsewhere: it gets ours alone, without the stack file's and
        # the provider's `aws:defaultTags`. https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
        tags=dict(home.own_tags),
        override_provider={"default_tags": {"tags": {}}},
        opts=opts,
    )
