"""EKS clusters: moto keeps them, and what it lacks is here: versions, access, protection, security group, updates.

An update is done when its call returns; DescribeUpdate tells how it ended.
https://docs.aws.amazon.com/eks/latest/APIReference/API_Operations.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moto.ec2.models import ec2_backends
from moto.eks.exceptions import EKSError
from moto.eks.models import Cluster, eks_backends
from moto.logs.models import logs_backends

from tools.cloud.answers import Error
from tools.cloud.backends.parts import Item, Parts, as_refused, update_of
from tools.cloud.callers import ACCOUNT
from tools.cloud.reach import ApiServers
from tools.cloud.rules import VERSIONS, error
from tools.cloud.wire import Call

#: What UpdateClusterConfig changes, with the type of its update; of these one a call.
_KINDS: Mapping[str, str] = {
    "resourcesVpcConfig": "VpcConfigUpdate",
    "logging": "LoggingUpdate",
    "accessConfig": "AccessConfigUpdate",
    "upgradePolicy": "UpgradePolicyUpdate",
    "deletionProtection": "DeletionProtectionUpdate",
}
#: https://docs.aws.amazon.com/eks/latest/APIReference/API_CreateCluster.html
_DEFAULTS: Item = {
    "accessConfig": {"bootstrapClusterCreatorAdminPermissions": True, "authenticationMode": "CONFIG_MAP"},
    "upgradePolicy": {"supportType": "EXTENDED"},
    "deletionProtection": False,
}
_ENDPOINT: Item = {"endpointPublicAccess": True, "endpointPrivateAccess": False, "publicAccessCidrs": ["0.0.0.0/0"]}


def create(call: Call, url: str, servers: ApiServers) -> Item:
    """A new cluster, with the security group that EKS makes for it."""
    params = call.params
    kept = {name: params.get(name) for name in ("version", "tags", "logging")}
    kept["version"] = kept["version"] or VERSIONS[-1]
    try:
        made = eks_backends[ACCOUNT][call.region].create_cluster(
            name=params["name"],
            role_arn=params["roleArn"],
            resources_vpc_config={**_ENDPOINT, **params["resourcesVpcConfig"]},
            encryption_config=params.get("encryptionConfig"),
            **kept,
        )
    except EKSError as refused:
        raise as_refused(refused) from None
    _make_group(call.region, made)
    for name, usual in _DEFAULTS.items():
        setattr(made, name, params[name] if params.get(name) is not None else usual)
    return {"cluster": shown(made, call.region, url, servers)}


def _make_group(region: str, cluster: Cluster) -> None:
    """The cluster's own security group lets in what has it too: the control plane and the nodes.

    https://docs.aws.amazon.com/eks/latest/userguide/sec-group-reqs.html
    """
    ec2, config = ec2_backends[ACCOUNT][region], cluster.resources_vpc_config
    config["vpcId"] = ec2.get_subnet(config["subnetIds"][0]).vpc_id
    group = ec2.create_security_group(f"eks-cluster-sg-{cluster.name}", "EKS", config["vpcId"], tags={})
    ec2.authorize_security_group_ingress(
        group_name_or_id=group.id,
        ip_protocol="-1",
        from_port=None,
        to_port=None,
        ip_ranges=[],
        source_groups=[{"GroupId": group.id}],
        vpc_id=config["vpcId"],
    )
    config["clusterSecurityGroupId"] = group.id


def describe(call: Call, url: str, servers: ApiServers) -> Item:
    """A live cluster."""
    return {"cluster": shown(find(call), call.region, url, servers)}


def find(call: Call, parameter: str = "name") -> Cluster:
    """The cluster that a call names in `parameter`; raises `Error`."""
    name = str(call.params[parameter])
    live = eks_backends[ACCOUNT][call.region].clusters.get(name)
    if live is None:
        raise Error(404, "ResourceNotFoundException", f"No cluster found for name: {name}.")
    return live


def shown(cluster: Any, region: str, url: str, servers: ApiServers) -> Item:
    """A cluster as DescribeCluster shows it."""
    endpoint, authority = servers.of(cluster, region, url)
    return {
        "name": cluster.name,
        "arn": cluster.arn,
        "createdAt": cluster.created_at.timestamp(),
        "version": cluster.version,
        "endpoint": endpoint,
        "roleArn": cluster.role_arn,
        "resourcesVpcConfig": cluster.resources_vpc_config,
        "kubernetesNetworkConfig": cluster.kubernetes_network_config,
        "logging": cluster.logging,
        "identity": cluster.identity,
        "status": cluster.status,
        "certificateAuthority": {"data": authority},
        "platformVersion": cluster.platformVersion,
        "tags": cluster.tags,
        "encryptionConfig": cluster.encryption_config,
        "health": {"issues": []},
        **{name: getattr(cluster, name, usual) for name, usual in _DEFAULTS.items()},
    }


def update_config(parts: Parts, call: Call) -> Item:
    """One kind of change. EKS calls endpoint access and subnets two kinds, and refuses what changes nothing."""
    cluster, params = find(call), call.params
    (name,) = (one for one in _KINDS if params.get(one) is not None)
    kind = _KINDS[name]
    if name == "resourcesVpcConfig":
        wanted = dict(params[name])
        if not {"subnetIds", "securityGroupIds"} & set(wanted):
            kind = "EndpointAccessUpdate"
        cluster.resources_vpc_config.update(wanted)
    elif name == "logging":
        cluster.logging = params[name]
    elif name == "accessConfig":
        cluster.accessConfig = {**cluster.accessConfig, **params[name]}
    else:
        setattr(cluster, name, params[name])
    return {"update": update_of(parts, kind, {name: params[name]})}


def update_version(parts: Parts, call: Call) -> Item:
    """The next minor version."""
    cluster, wanted = find(call), str(call.params["version"])
    cluster.version = wanted
    return {"update": update_of(parts, "VersionUpdate", {"Version": wanted})}


def delete(call: Call, late_logs: set[tuple[str, str]], url: str, servers: ApiServers) -> Item:
    """The end of a cluster and of its security group. Its logs may come later (`log_group_deleted`)."""
    cluster = find(call)
    if cluster.deletionProtection:
        raise error("protected", name=cluster.name)
    last = shown(cluster, call.region, url, servers)
    try:
        eks_backends[ACCOUNT][call.region].delete_cluster(cluster.name)
    except EKSError as refused:
        raise as_refused(refused) from None
    if any(item["enabled"] for item in cluster.logging["clusterLogging"]):
        late_logs.add((call.region, f"/aws/eks/{cluster.name}/cluster"))
    ec2_backends[ACCOUNT][call.region].delete_security_group(
        group_id=cluster.resources_vpc_config["clusterSecurityGroupId"]
    )
    return {"cluster": {**last, "status": "DELETING"}}


def log_group_deleted(call: Call, late_logs: set[tuple[str, str]]) -> None:
    """EKS writes a cluster's last logs after it is gone, and then makes the group again (terraform-aws-eks#2763).

    It has no tags; moto would give it those of the group that was deleted.
    """
    name, logs = str(call.params["logGroupName"]), logs_backends[ACCOUNT][call.region]
    if (call.region, name) in late_logs:
        late_logs.discard((call.region, name))
        arn = logs.create_log_group(name, {}).arn
        logs.tagger.delete_all_tags_for_resource(arn)
