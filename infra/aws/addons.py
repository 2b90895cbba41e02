"""EKS add-ons, in two groups: what a node needs to become Ready, and what needs nodes to run on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws import policies
from modelfleet.infra.aws.site import Site
from modelfleet.infra.names import GPU
from modelfleet.infra.planning.plan import Plan

#: NetworkPolicies are enforced only with `enableNetworkPolicy`, which the add-on takes as text. Its agent needs no
#: right of AWS, and its 25m of CPU are in infra/catalog/daemon-sets.csv
#: (https://docs.aws.amazon.com/eks/latest/userguide/cni-network-policy-configure.html).
#: By default the VPC CNI keeps a whole spare interface per node, 98 addresses on a large one
#: (amazon-vpc-cni-k8s docs/eni-and-ip-target.md). Our GPU nodes run one pod and a few daemon sets.
CNI = {"enableNetworkPolicy": "true", "env": {"WARM_IP_TARGET": "5", "MINIMUM_IP_TARGET": "10"}}
CNI_POLICY = "AmazonEKS_CNI_Policy"
#: By default its DCGM server tolerates no taint, so it is on no GPU node and the agent sees no DCGM faults
#: (aws/eks-node-monitoring-agent 51af549 charts/eks-node-monitoring-agent/values.yaml, `dcgmAgent.tolerations`).
MONITORING = {"dcgmAgent": {"tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]}}


@dataclass(frozen=True)
class AddonSpec:
    """One add-on. `role_policy` is the AWS-managed policy of its service account's own role."""

    name: str
    configuration: Mapping[str, Any] | None = None
    service_account: str | None = None
    role_policy: str | None = None


#: Before any node: without `vpc-cni` nodes stay NotReady and bill (terraform-aws-eks#3446).
BEFORE_NODES = (
    AddonSpec("eks-pod-identity-agent"),
    AddonSpec("kube-proxy"),
    AddonSpec("vpc-cni", CNI, "aws-node", CNI_POLICY),
)
#: After the untainted system pool: with tainted groups only, CoreDNS has nowhere to run (containers-roadmap#1389).
#: The monitoring agent shows GPU faults (XID, DCGM) to node repair, which otherwise sees only what kubelet reports.
AFTER_NODES = (
    AddonSpec("coredns"),
    AddonSpec("eks-node-monitoring-agent", MONITORING),
    AddonSpec("metrics-server"),
)

#: Only for a stack with a volume claim. The policy's ARN has no `service-role/`, unlike its predecessor's.
#: https://docs.aws.amazon.com/aws-managed-policy/latest/reference/AmazonEBSCSIDriverPolicyV2.html
VOLUMES = AddonSpec(
    "aws-ebs-csi-driver", service_account="ebs-csi-controller-sa", role_policy="AmazonEBSCSIDriverPolicyV2"
)


#: What its Prometheus, or Amazon's, asks about Jobs and nodes; a community add-on, in a namespace of its own.
STATES = AddonSpec("kube-state-metrics")


def after_nodes(plan: Plan) -> Sequence[AddonSpec]:
    """The add-ons of the second group that a stack has."""
    own = plan.own_monitoring
    if plan.amp is not None:
        return (*AFTER_NODES, STATES)
    if own is None:
        return AFTER_NODES
    return (*AFTER_NODES, VOLUMES, *((STATES,) if own.makes_states else ()))


class Addons(pulumi.ComponentResource):
    """Children: each add-on and, if it talks to AWS, a role tied to it by Pod Identity."""

    ready: Sequence[pulumi.Resource]

    def __init__(
        self,
        name: str,
        site: Site,
        specs: Sequence[AddonSpec],
        *,
        cluster: aws.eks.Cluster,
        kubernetes_version: str,
        pinned: Mapping[str, str],
        after: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:aws:Addons", name, None, opts)
        self._name, self._site, self._cluster = name, site, cluster
        self._kubernetes_version, self._pinned = kubernetes_version, pinned
        self._child = pulumi.ResourceOptions(parent=self)
        # Set on the children, because a component's `depends_on` does not reach them.
        self._after = pulumi.ResourceOptions(parent=self, depends_on=[*after])
        self.ready = [self._create_addon(spec) for spec in specs]
        self.register_outputs({})

    def _create_addon(self, spec: AddonSpec) -> pulumi.Resource:
        name = f"{self._name}-{spec.name}"
        identities: list[aws.eks.AddonPodIdentityAssociationArgsDict] = []
        if spec.service_account and spec.role_policy:
            role = self._create_role(name, spec.service_account, spec.role_policy)
            identities = [{"service_account": spec.service_account, "role_arn": role.arn}]
        return aws.eks.Addon(
            name,
            cluster_name=self._cluster.name,
            addon_name=spec.name,
            addon_version=self._pinned.get(spec.name) or self._default_version(spec.name),
            configuration_values=json.dumps(spec.configuration) if spec.configuration else None,
            pod_identity_associations=identities or None,
            resolve_conflicts_on_create="OVERWRITE",
            resolve_conflicts_on_update="PRESERVE",
            tags=self._site.tagged(name),
            opts=self._after,
        )

    def _default_version(self, addon: str) -> str:
        """EKS's default for the cluster's version rather than the newest: it changes rarely, and only for a reason."""
        found = aws.eks.get_addon_version(
            addon_name=addon,
            kubernetes_version=self._kubernetes_version,
            most_recent=False,
            opts=pulumi.InvokeOptions(parent=self),
        )
        return str(found.version)

    def _create_role(self, name: str, service_account: str, managed_policy: str) -> aws.iam.Role:
        trust = policies.pod_trust(
            cluster_arn=self._site.cluster_arn, namespace="kube-system", service_account=service_account
        )
        role = aws.iam.Role(name, assume_role_policy=json.dumps(trust), tags=self._site.tagged(name), opts=self._child)
        aws.iam.RolePolicyAttachment(
            name,
            role=role.name,
            policy_arn=f"arn:{self._site.partition}:iam::aws:policy/{managed_policy}",
            opts=self._child,
        )
        return role
