"""The images of a stack that names none: CodeBuild builds them from the stack's bucket, ECR keeps them.

A build runs outside the stack's network, so it reaches vLLM's registry and PyPI whatever the network is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.code import zip_object
from modelfleet.infra.aws.documents import image_documents
from modelfleet.infra.aws.site import Site, image_log_group, image_project
from modelfleet.infra.planning.image import SERVING_COMPUTE
from modelfleet.infra.planning.plan import ImagePlan

#: Amazon Linux 2023, with Docker. https://docs.aws.amazon.com/codebuild/latest/userguide/build-env-ref-available.html
MACHINE_IMAGE = "aws/codebuild/amazonlinux-x86_64-standard:5.0"
#: A build that pulls 12 GB and pushes as much has ended long before.
BUILD_MINUTES = 120
#: A region that gives no build machine for so long is not waited for.
QUEUED_MINUTES = 30
LOG_RETENTION_DAYS = 30
#: The newest images stay: the live one, and those that a rollback wants. Only a push makes one too many, so the image
#: of the last build is never among those that go.
KEPT_IMAGES = 5


class Images(pulumi.ComponentResource):
    """Children: for each image its repository with a lifecycle and its build; source, log group, role and project.

    `serving` and `mirror` are images by their digests, `mirror` None where the plan makes none. Whatever depends on
    `builds` waits until all are there.
    """

    serving: pulumi.Output[str]
    mirror: pulumi.Output[str] | None
    builds: Sequence[Build]

    def __init__(
        self,
        name: str,
        site: Site,
        serving: ImagePlan,
        mirror: ImagePlan | None,
        *,
        bucket: pulumi.Input[str],
        bucket_name: str,
        source: pulumi.Asset,
        key: aws.kms.Key | None = None,
        after: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        # Its first name: another one would be another URN of each child, and repositories made again.
        super().__init__("modelfleet:aws:ServingImage", name, None, opts)
        self._name, self._site = name, site
        self._child = pulumi.ResourceOptions(parent=self)
        zipped = zip_object(
            f"{name}-source",
            site,
            serving.source,
            bucket=bucket,
            source=source,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[*after]),
        )
        logs = self._create_log_group()
        plans = [serving, *([mirror] if mirror else [])]
        role, attached = self._create_role(image_documents(site, plans, bucket_name), key)
        self._project = self._create_project(role, pulumi.Output.concat(bucket, "/", zipped.key))
        self._first = [*attached, logs, zipped]
        self.builds = []
        self.serving = self._create_image(name, serving)
        self.mirror = self._create_image(f"{name}-mirror", mirror) if mirror else None
        self.register_outputs({"serving": self.serving, "mirror": self.mirror})

    def _create_image(self, name: str, plan: ImagePlan) -> pulumi.Output[str]:
        """The repository and the build; the image by its digest."""
        repository = self._create_repository(name, plan)
        build = Build(
            name,
            {
                "account": self._site.account,
                "compute": plan.compute_type,
                "profile": pulumi.Config("aws").get("profile"),
                "project": self._project.name,
                "region": self._site.region,
                "repository": repository.name,
                "tag": plan.tag,
                "variables": {
                    "BASE_IMAGE": plan.base,
                    "DOCKERFILE": plan.dockerfile,
                    "REPOSITORY": repository.repository_url,
                },
            },
            pulumi.ResourceOptions(parent=self, depends_on=self._first),
        )
        self.builds = [*self.builds, build]
        return pulumi.Output.concat(repository.repository_url, "@", build.digest)

    def _create_repository(self, name: str, plan: ImagePlan) -> aws.ecr.Repository:
        repository = aws.ecr.Repository(
            name,
            name=plan.repository,
            image_tag_mutability="IMMUTABLE",
            image_scanning_configuration={"scan_on_push": True},
            # Images are made again from the same source, so nothing is lost with the stack.
            force_delete=True,
            tags=self._site.tagged(name),
            opts=self._child,
        )
        rule = {
            "rulePriority": 1,
            "description": f"keep the newest {KEPT_IMAGES}",
            "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": KEPT_IMAGES},
            "action": {"type": "expire"},
        }
        aws.ecr.LifecyclePolicy(
            name, repository=repository.name, policy=json.dumps({"rules": [rule]}), opts=self._child
        )
        return repository

    def _create_log_group(self) -> aws.cloudwatch.LogGroup:
        """Before the first build: CodeBuild's role may write to it and make no other."""
        return aws.cloudwatch.LogGroup(
            self._name,
            name=image_log_group(self._site.cluster_name),
            retention_in_days=LOG_RETENTION_DAYS,
            tags=self._site.tagged(self._name),
            opts=self._child,
        )

    def _create_role(
        self, documents: Mapping[str, policies.Document], key: aws.kms.Key | None
    ) -> tuple[aws.iam.Role, list[pulumi.Resource]]:
        role = aws.iam.Role(
            self._name,
            assume_role_policy=json.dumps(documents["trust"]),
            tags=self._site.tagged(self._name),
            opts=self._child,
        )
        access: dict[str, pulumi.Input[str]] = {"access": policies.as_json(documents["access"])}
        if key is not None:
            region = self._site.region
            access["key"] = key.arn.apply(
                lambda arn: policies.as_json(policies.document(policies.use_key(arn, write=False, region=region)))
            )
        return role, [self._attach(role, f"{self._name}-{short}", text) for short, text in access.items()]

    def _attach(self, role: aws.iam.Role, name: str, document: pulumi.Input[str]) -> pulumi.Resource:
        policy = aws.iam.Policy(name, policy=document, tags=self._site.tagged(name), opts=self._child)
        return aws.iam.RolePolicyAttachment(name, role=role.name, policy_arn=policy.arn, opts=self._child)

    def _create_project(self, role: aws.iam.Role, location: pulumi.Input[str]) -> aws.codebuild.Project:
        """A build says which image it makes, and on which machine."""
        return aws.codebuild.Project(
            self._name,
            name=image_project(self._site.cluster_name),
            description=f"The images of the modelfleet stack {self._site.stack}",
            service_role=role.arn,
            source={"type": "S3", "location": location},
            artifacts={"type": "NO_ARTIFACTS"},
            environment={
                "type": "LINUX_CONTAINER",
                "compute_type": SERVING_COMPUTE,
                "image": MACHINE_IMAGE,
                "privileged_mode": True,  # without it there is no Docker daemon
            },
            logs_config={"cloudwatch_logs": {"group_name": image_log_group(self._site.cluster_name)}},
            build_timeout=BUILD_MINUTES,
            queued_timeout=QUEUED_MINUTES,
            tags=self._site.tagged(self._name),
            opts=self._child,
        )


class Build(pulumi.CustomResource):
    """A resource of the plugin `modelfleet` (`infra/image_build.py`): it is there when the image is."""

    digest: pulumi.Output[str]

    def __init__(self, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("modelfleet:aws:ImageBuild", name, {**props, "digest": None}, opts)
