"""What is in the emulated account, through boto3. The tests look there, not at what the program reported."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

from tests.engine.conftest import Emulator


class Account:
    """One account in one region."""

    def __init__(self, emulator: Emulator, region: str) -> None:
        self._emulator, self.region = emulator, region
        self.ec2 = self.client("ec2")
        self.cache = self.client("elasticache")
        self.eks = self.client("eks")
        self.iam = self.client("iam")
        self.kms = self.client("kms")
        self.s3 = self.client("s3")

    def client(self, service: str) -> Any:
        """A client of the account."""
        return self._emulator.client(service, self.region)

    # --- EKS -----------------------------------------------------------------------------------------------

    def cluster(self, name: str) -> dict[str, Any]:
        """A cluster."""
        return dict(self.eks.describe_cluster(name=name)["cluster"])

    def zone_groups(self, cluster: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Node groups by pool (read from the label, as the scheduler does), then by zone, in order."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        zone_of = {one["SubnetId"]: one["AvailabilityZone"] for one in self.ec2.describe_subnets()["Subnets"]}
        for name in self.eks.list_nodegroups(clusterName=cluster, maxResults=100)["nodegroups"]:
            group = self.eks.describe_nodegroup(clusterName=cluster, nodegroupName=name)["nodegroup"]
            own = found.setdefault(group["labels"]["modelfleet.dev/pool"], {})
            (zone,) = {zone_of[subnet] for subnet in group["subnets"]}  # Auto Scaling would balance two of them
            assert zone not in own, f"two node groups in {zone}: {name} and {own.get(zone)}"
            own[zone] = group
        return {pool: dict(sorted(own.items())) for pool, own in found.items()}

    def node_groups(self, cluster: str) -> dict[str, dict[str, Any]]:
        """The first zone's node group of each pool; those of its other zones are the same but for place and size."""
        groups = {pool: list(own.values()) for pool, own in self.zone_groups(cluster).items()}
        same = ("labels", "taints", "amiType", "capacityType", "instanceTypes", "launchTemplate", "updateConfig")
        for pool, (first, *others) in groups.items():
            for other in others:
                assert {k: first.get(k) for k in same} == {k: other.get(k) for k in same}, f"pool {pool} is not one"
        return {pool: own[0] for pool, own in groups.items()}

    def template(self, group: dict[str, Any]) -> dict[str, Any]:
        """The launch template data of a node group, at the version that it names."""
        template = group["launchTemplate"]
        answer = self.ec2.describe_launch_template_versions(
            LaunchTemplateId=template["id"], Versions=[template["version"]]
        )
        return dict(answer["LaunchTemplateVersions"][0]["LaunchTemplateData"])

    def scaling_tags(self, group: dict[str, Any]) -> dict[str, str]:
        """Tags of a node group's Auto Scaling group that describe its nodes to cluster-autoscaler."""
        name = group["resources"]["autoScalingGroups"][0]["name"]
        return {tag["Key"]: tag["Value"] for tag in self.node_template_tags() if tag["ResourceId"] == name}

    def node_template_tags(self) -> list[dict[str, Any]]:
        """Tags of all Auto Scaling groups but those that EKS sets."""
        found = self.client("autoscaling").describe_tags()["Tags"]
        return [tag for tag in found if tag["Key"].startswith("k8s.io/cluster-autoscaler/node-template/")]

    def addons(self, cluster: str) -> dict[str, dict[str, Any]]:
        """A cluster's add-ons by name, with the roles of their service accounts."""
        found = {}
        for name in self.eks.list_addons(clusterName=cluster)["addons"]:
            addon = self.eks.describe_addon(clusterName=cluster, addonName=name)["addon"]
            ids = [arn.rpartition("/")[2] for arn in addon["podIdentityAssociations"]]
            roles = [
                self.eks.describe_pod_identity_association(clusterName=cluster, associationId=id)["association"]
                for id in ids
            ]
            found[name] = {**addon, "podIdentityAssociations": roles}
        return found

    def entries(self, cluster: str) -> dict[str, list[dict[str, Any]]]:
        """The access policies of a cluster's access entries, by principal."""
        return {
            principal: self.eks.list_associated_access_policies(clusterName=cluster, principalArn=principal)[
                "associatedAccessPolicies"
            ]
            for principal in self.eks.list_access_entries(clusterName=cluster)["accessEntries"]
        }

    def parts(self, cluster: str) -> list[str]:
        """What ends with a cluster: add-ons, access entries and their policies, Pod Identity associations."""
        entries = self.entries(cluster)
        identities = self.eks.list_pod_identity_associations(clusterName=cluster)["associations"]
        return sorted(
            [
                *self.addons(cluster),
                *entries,
                *(f"{principal} {one['policyArn']}" for principal, own in entries.items() for one in own),
                *(f"{one['namespace']}/{one['serviceAccount']}" for one in identities),
            ]
        )

    # --- ElastiCache ---------------------------------------------------------------------------------------

    def stores(self) -> list[dict[str, Any]]:
        """The replication groups."""
        return list(self.cache.describe_replication_groups()["ReplicationGroups"])

    # --- IAM -----------------------------------------------------------------------------------------------

    def role(self, service_account: str, namespace: str, cluster: str) -> dict[str, Any]:
        """The role that Pod Identity gives a service account."""
        where = {"clusterName": cluster, "namespace": namespace, "serviceAccount": service_account}
        (found,) = self.eks.list_pod_identity_associations(**where)["associations"]
        association = self.eks.describe_pod_identity_association(
            clusterName=cluster, associationId=found["associationId"]
        )["association"]
        arn = association["roleArn"]
        return dict(self.iam.get_role(RoleName=arn.rpartition("/")[2])["Role"])

    def statements(self, role: str) -> list[dict[str, Any]]:
        """All statements of the policies that are attached to a role and are not AWS's own."""
        found: list[dict[str, Any]] = []
        for attached in self.iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
            arn = attached["PolicyArn"]
            if ":aws:policy/" not in arn:
                version = self.iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
                document = self.iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
                found += (json.loads(unquote(document)) if isinstance(document, str) else document)["Statement"]
        return found

    # --- everything ----------------------------------------------------------------------------------------

    def everything(self) -> list[str]:
        """Everything that a stack could leave behind, in every service that it uses."""
        vpcs = self.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["false"]}])["Vpcs"]
        own = {vpc["VpcId"] for vpc in vpcs}
        return [
            *own,
            *(item["SubnetId"] for item in self.ec2.describe_subnets()["Subnets"] if item["VpcId"] in own),
            *(item["AllocationId"] for item in self.ec2.describe_addresses()["Addresses"]),
            *(n["NatGatewayId"] for n in self.ec2.describe_nat_gateways()["NatGateways"] if n["State"] != "deleted"),
            *(i["InternetGatewayId"] for i in self.ec2.describe_internet_gateways()["InternetGateways"]),
            *(e["VpcEndpointId"] for e in self.ec2.describe_vpc_endpoints()["VpcEndpoints"] if e["State"] != "deleted"),
            *(g["GroupId"] for g in self.ec2.describe_security_groups()["SecurityGroups"] if g["VpcId"] in own),
            *(t["LaunchTemplateId"] for t in self.ec2.describe_launch_templates()["LaunchTemplates"]),
            *(t["RouteTableId"] for t in self.ec2.describe_route_tables()["RouteTables"] if t["VpcId"] in own),
            *(clusters := self.eks.list_clusters()["clusters"]),
            *(part for cluster in clusters for part in self.parts(cluster)),
            *(
                g["AutoScalingGroupName"]
                for g in self.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
            ),
            *(role["RoleName"] for role in self.iam.list_roles()["Roles"]),
            *(policy["PolicyName"] for policy in self.iam.list_policies(Scope="Local")["Policies"]),
            *self.keys(),
            *(
                a["AliasName"]
                for a in self.kms.list_aliases()["Aliases"]
                if not a["AliasName"].startswith("alias/aws/")
            ),
            # Without retention it is one that EKS made again after the cluster had gone: nobody's, and the next `up`'s.
            *(
                g["logGroupName"]
                for g in self.client("logs").describe_log_groups()["logGroups"]
                if "retentionInDays" in g
            ),
            *(one["ReplicationGroupId"] for one in self.stores()),
            *(one["workspaceId"] for one in self.client("amp").list_workspaces()["workspaces"]),
            *(one["scraperId"] for one in self.client("amp").list_scrapers()["scrapers"]),
            *(one["TopicArn"] for one in self.client("sns").list_topics()["Topics"]),
            *(g["CacheSubnetGroupName"] for g in self.cache.describe_cache_subnet_groups()["CacheSubnetGroups"]),
            *self._emulator.buckets(),
            *(r["repositoryName"] for r in self.client("ecr").describe_repositories()["repositories"]),
        ]

    def keys(self) -> list[str]:
        """Customer keys that are not scheduled for deletion (AWS keeps those for their window)."""
        ids = [key["KeyId"] for key in self.kms.list_keys()["Keys"]]
        states = {id: self.kms.describe_key(KeyId=id)["KeyMetadata"] for id in ids}
        return [id for id, key in states.items() if key["KeyState"] != "PendingDeletion" and key["KeyManager"] != "AWS"]
