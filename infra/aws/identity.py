"""Roles of pods through EKS Pod Identity: replicas read, the mirror Job writes, the autoscaler scales."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.site import Site


class PodRole(pulumi.ComponentResource):
    """Children: a role for one service account, its policies, and the association that ties both."""

    role: aws.iam.Role
    association: aws.eks.PodIdentityAssociation

    def __init__(
        self,
        name: str,
        site: Site,
        documents: Mapping[str, pulumi.Input[str]],
        *,
        cluster_name: pulumi.Input[str],
        namespace: str,
        service_account: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:PodRole", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        trust = policies.pod_trust(cluster_arn=site.cluster_arn, namespace=namespace, service_account=service_account)
        self.role = aws.iam.Role(name, assume_role_policy=json.dumps(trust), tags=site.tagged(name), opts=child)
        attached = [self._attach(f"{name}-{short}", document, site) for short, document in documents.items()]
        self.association = aws.eks.PodIdentityAssociation(
            name,
            cluster_name=cluster_name,
            namespace=namespace,
            service_account=service_account,
            role_arn=self.role.arn,
            tags=site.tagged(name),
            opts=pulumi.ResourceOptions(parent=self, depends_on=attached),
        )
        self.register_outputs({"role_arn": self.role.arn})

    def _attach(self, name: str, document: pulumi.Input[str], site: Site) -> pulumi.Resource:
        child = pulumi.ResourceOptions(parent=self)
        policy = aws.iam.Policy(name, policy=document, tags=site.tagged(name), opts=child)
        return aws.iam.RolePolicyAttachment(name, role=self.role.name, policy_arn=policy.arn, opts=child)


def as_documents(name: str, statements: Sequence[policies.Statement]) -> dict[str, str]:
    """Statements as JSON policies by short name, split where one would be too long for IAM."""
    return {short: policies.as_json(document) for short, document in policies.numbered(name, statements).items()}
