"""The serving image of a stack that names none: CodeBuild builds it from the stack's bucket, ECR keeps it.

The build runs outside the stack's network, so it reaches vLLM's registry and PyPI whatever the network is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.code import zip_object
from modelfleet.infra.aws.documents import image_documents
from modelfleet.infra.aws.site import Site, image_log_group, image_project
from modelfleet.infra.planning.image import COMPUTE_TYPE
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


class ServingImage(pulumi.ComponentResource):
    """Children: repository and its lifecycle, source, log group, role, project, build.

    `reference` is the image by its digest. Whatever depends on `build` waits until it is there.
    """

    reference: pulumi.Output[str]
    build: Build

    def __init__(
        self,
        name: str,
        site: Site,
        plan: ImagePlan,
        *,
        bucket: pulumi.Input[str],
        bucket_name: str,
        source: pulumi.Asset,
        key: aws.kms.Key | None = None,
        after: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:ServingImage", name, None, opts)
        self._name, self._site, self._plan = name, site, plan
        self._child = pulumi.ResourceOptions(parent=self)
        repository = self._create_repository()
        zipped = zip_object(
            f"{name}-source",
            site,
            plan.source,
            bucket=bucket,
            source=source,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[*after]),
        )
        logs = self._create_log_group()
        role, attached = self._create_role(image_documents(site, plan, bucket_name), key)
        project = self._create_project(role, pulumi.Output.concat(bucket, "/", zipped.key), repository)
        self.build = Build(
            name,
            {
                "account": site.account,
                "profile": pulumi.Config("aws").get("profile"),
                "project": project.name,
                "region": site.region,
                "repository": repository.name,
                "tag": plan.tag,
            },
            pulumi.ResourceOptions(parent=self, depends_on=[*attached, logs, zipped]),
        )
        self.reference = pulumi.Output.concat(repository.repository_url, "@", self.build.digest)
        self.register_outputs({"reference": self.reference})

    def _create_repository(self) -> aws.ecr.Repository:
        repository = aws.ecr.Repository(
            self._name,
            name=self._plan.repository,
            image_tag_mutability="IMMUTABLE",
            image_scanning_configuration={"scan_on_push": True},
            # Images are made again from the same source, so nothing is lost with the stack.
            force_delete=True,
            tags=self._site.tagged(self._name),
            opts=self._child,
        )
        rule = {
            "rulePriority": 1,
            "description": f"keep the newest {KEPT_IMAGES}",
            "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": KEPT_IMAGES},
            "action": {"type": "expire"},
        }
        aws.ecr.LifecyclePolicy(
            self._name, repository=repository.name, policy=json.dumps({"rules": [rule]}), opts=self._child
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

    def _create_project(
        self, role: aws.iam.Role, location: pulumi.Input[str], repository: aws.ecr.Repository
    ) -> aws.codebuild.Project:
        return aws.codebuild.Project(
            self._name,
            name=image_project(self._site.cluster_name),
            description=f"The serving image of the modelfleet stack {self._site.stack}",
            service_role=role.arn,
            source={"type": "S3", "location": location},
            artifacts={"type": "NO_ARTIFACTS"},
            environment={
                "type": "LINUX_CONTAINER",
                "compute_type": COMPUTE_TYPE,
                "image": MACHINE_IMAGE,
                "privileged_mode": True,  # without it there is no Docker daemon
                "environment_variables": [
                    {"name": "REPOSITORY", "value": repository.repository_url},
                    {"name": "BASE_IMAGE", "value": self._plan.base},
                ],
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

    def __init__(
        self, name: str, props: Mapping[str, pulumi.Input[str | None]], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("modelfleet:aws:ImageBuild", name, {**props, "digest": None}, opts)
