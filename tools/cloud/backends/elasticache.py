"""What ElastiCache does and moto does not: rules of replication groups, tags, and deletion.

https://docs.aws.amazon.com/AmazonElastiCache/latest/APIReference/API_CreateReplicationGroup.html
https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/auth.html
https://docs.aws.amazon.com/AmazonElastiCache/latest/APIReference/API_DeleteCacheSubnetGroup.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from moto.elasticache.models import ElastiCacheBackend, elasticache_backends

from tools.cloud.answers import Answer, Error, as_xml
from tools.cloud.callers import ACCOUNT
from tools.cloud.wire import Call

_ID = re.compile(r"[a-z]([a-z0-9]|-(?=[a-z0-9])){0,39}", re.IGNORECASE)
_TOKEN = re.compile(r"[A-Za-z0-9!&#$^<>-]{16,128}")


def answer(call: Call) -> Answer | None:
    """The answer to what moto does not know; None if moto answers. Raises `Error` as ElastiCache refuses."""
    backend = elasticache_backends[ACCOUNT][call.region]
    if call.operation == "CreateReplicationGroup":
        for fault in _faults(backend, call.params):
            raise Error(400, *fault)
    if call.operation == "DeleteReplicationGroup":
        return _delete_group(backend, call.params["ReplicationGroupId"])
    if call.operation == "DeleteCacheSubnetGroup":
        return _delete_subnets(backend, call.params["CacheSubnetGroupName"])
    if call.operation == "AddTagsToResource":
        backend.tagging_service.tag_resource(call.params["ResourceName"], call.params["Tags"])
        return _done(call.operation)
    return None


def _faults(backend: ElastiCacheBackend, asked: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Code and message of what ElastiCache refuses."""
    value, combination = "InvalidParameterValue", "InvalidParameterCombination"
    nodes = int(asked.get("NumCacheClusters") or 1)
    if not _ID.fullmatch(asked["ReplicationGroupId"]):
        yield value, "The parameter ReplicationGroupId is not a valid identifier"
    if (token := asked.get("AuthToken")) is not None:
        if not asked.get("TransitEncryptionEnabled"):
            yield combination, "AuthToken is only allowed if TransitEncryptionEnabled is true"
        if not _TOKEN.fullmatch(token):
            yield value, "AuthToken has 16 to 128 characters: letters, digits and !&#$^<>-"
    if asked.get("AutomaticFailoverEnabled") and nodes < 2:
        yield combination, "Automatic failover needs at least 2 cache clusters"
    if asked.get("MultiAZEnabled") and not asked.get("AutomaticFailoverEnabled"):
        yield combination, "MultiAZEnabled needs AutomaticFailoverEnabled"
    name = asked.get("CacheSubnetGroupName")
    if name is not None and name not in backend.cache_subnet_groups:
        yield "CacheSubnetGroupNotFoundFault", f"Cache Subnet Group {name} does not exist."


def _delete_group(backend: ElastiCacheBackend, name: str) -> Answer:
    if backend.replication_groups.pop(name, None) is None:
        raise Error(404, "ReplicationGroupNotFoundFault", f"ReplicationGroup {name} not found.")
    return _done("DeleteReplicationGroup")


def _delete_subnets(backend: ElastiCacheBackend, name: str) -> Answer:
    if name not in backend.cache_subnet_groups:
        raise Error(400, "CacheSubnetGroupNotFoundFault", f"Cache Subnet Group {name} does not exist.")
    if any(group.cache_subnet_group_name == name for group in backend.replication_groups.values()):
        raise Error(400, "CacheSubnetGroupInUse", f"Cache Subnet Group {name} is currently in use by a cache cluster.")
    del backend.cache_subnet_groups[name]
    return _done("DeleteCacheSubnetGroup")


def _done(operation: str) -> Answer:
    return as_xml(f"<{operation}Response><{operation}Result/></{operation}Response>")
