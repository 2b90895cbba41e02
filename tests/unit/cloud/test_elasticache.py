"""ElastiCache over HTTP: what it refuses, and that what is deleted is gone, which moto leaves undone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.cloud.test_judge import refused
from tools.cloud.server import Listening

GROUP: dict[str, Any] = {
    "ReplicationGroupId": "store",
    "ReplicationGroupDescription": "x",
    "Engine": "valkey",
    "CacheNodeType": "cache.t4g.micro",
    "NumCacheClusters": 2,
    "AutomaticFailoverEnabled": True,
    "MultiAZEnabled": True,
    "CacheSubnetGroupName": "store",
    "TransitEncryptionEnabled": True,
    "AuthToken": "0123456789abcdef",
}


@pytest.fixture
def cache(account: Listening) -> Any:
    """A client of an account with a subnet group."""
    ec2, client = account.client("ec2"), account.client("elasticache")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    client.create_cache_subnet_group(
        CacheSubnetGroupName="store", CacheSubnetGroupDescription="x", SubnetIds=[subnet], Tags=[]
    )
    return client


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"TransitEncryptionEnabled": False}, "InvalidParameterCombination", id="a-token-without-tls"),
        pytest.param({"AuthToken": "short"}, "InvalidParameterValue", id="a-short-token"),
        pytest.param({"AuthToken": "0123456789abcdef_"}, "InvalidParameterValue", id="a-token-with-another-character"),
        pytest.param({"NumCacheClusters": 1}, "InvalidParameterCombination", id="failover-of-one-node"),
        pytest.param({"AutomaticFailoverEnabled": False}, "InvalidParameterCombination", id="zones-without-failover"),
        pytest.param({"CacheSubnetGroupName": "none"}, "CacheSubnetGroupNotFoundFault", id="no-such-subnets"),
        pytest.param({"ReplicationGroupId": "a--b"}, "InvalidParameterValue", id="two-hyphens"),
        pytest.param({"ReplicationGroupId": "a" * 41}, "InvalidParameterValue", id="a-long-name"),
    ],
)
def test_what_elasticache_would_refuse_is_refused(cache: Any, change: dict[str, Any], code: str) -> None:
    assert refused(cache.create_replication_group, **{**GROUP, **change})[:2] == (400, code)
    assert cache.describe_replication_groups()["ReplicationGroups"] == []


def test_subnets_stay_while_a_group_uses_them_and_what_is_deleted_is_gone(cache: Any) -> None:
    cache.create_replication_group(**GROUP)
    in_use = refused(cache.delete_cache_subnet_group, CacheSubnetGroupName="store")
    assert in_use[:2] == (400, "CacheSubnetGroupInUse")
    cache.delete_replication_group(ReplicationGroupId="store")
    gone = refused(cache.delete_replication_group, ReplicationGroupId="store")
    assert gone[:2] == (404, "ReplicationGroupNotFoundFault")
    cache.delete_cache_subnet_group(CacheSubnetGroupName="store")
    assert refused(cache.delete_cache_subnet_group, CacheSubnetGroupName="store")[1] == "CacheSubnetGroupNotFoundFault"


def test_tags_are_added_and_removed(cache: Any) -> None:
    arn = cache.create_replication_group(**GROUP)["ReplicationGroup"]["ARN"]
    cache.add_tags_to_resource(ResourceName=arn, Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
    cache.remove_tags_from_resource(ResourceName=arn, TagKeys=["a"])
    assert cache.list_tags_for_resource(ResourceName=arn)["TagList"] == [{"Key": "b", "Value": "2"}]
