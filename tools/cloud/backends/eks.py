"""EKS: all operations, on clusters and node groups that moto keeps, and access entries.

Operations, parameters and errors are those of botocore's model of EKS. Everything becomes ACTIVE at once, and ends with
its cluster.
https://docs.aws.amazon.com/eks/latest/APIReference/API_Operations.html
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from moto.eks.models import EKSBackend, eks_backends

from tools.cloud.answers import Answer, Error, as_json
from tools.cloud.backends import addons, associations, clusters, node_groups
from tools.cloud.backends.parts import Item, Parts, absent, arn_of, in_use, now, require_role, wrong
from tools.cloud.backends.scaling import Scaling
from tools.cloud.callers import ACCOUNT
from tools.cloud.reach import ApiServers
from tools.cloud.wire import Call

#: Access policies that EKS has. https://docs.aws.amazon.com/eks/latest/userguide/access-policy-permissions.html
_ACCESS_POLICY = re.compile(r"arn:aws[\w-]*:eks::aws:cluster-access-policy/AmazonEKS\w+Policy")
_OF_CLUSTERS = frozenset(
    {
        "CreateCluster",
        "DescribeCluster",
        "UpdateClusterConfig",
        "UpdateClusterVersion",
        "DeleteCluster",
        "DescribeUpdate",
    }
)
#: Kinds of our parts in an ARN, before the cluster's name.
_KINDS = re.compile(r":(?:addon|access-entry|podidentityassociation)/([^/]+)/")


class Eks:
    """All clusters with their parts."""

    def __init__(self, scaling: Scaling) -> None:
        self.servers = ApiServers()
        self.node_groups = node_groups.NodeGroups(scaling)
        self._parts: dict[tuple[str, str], Parts] = {}
        #: Regions and log groups of clusters that have gone and still have something to write.
        self._late_logs: set[tuple[str, str]] = set()
        #: Answers by region, operation and token: an SDK that got no answer asks again with the same token.
        self._answered: dict[tuple[str, str, str], Answer] = {}
        self._lock = threading.RLock()
        self._operations: Mapping[str, Callable[[Parts, Call], Item]] = {
            "CreateAddon": lambda parts, call: addons.create(parts, call, _kubernetes_version(call)),
            "DescribeAddon": lambda parts, call: {"addon": addons.find(parts, call)},
            "ListAddons": lambda parts, call: {"addons": sorted(parts.addons)},
            "UpdateAddon": addons.update,
            "DeleteAddon": addons.delete,
            "CreateAccessEntry": _create_entry,
            "DescribeAccessEntry": lambda parts, call: {"accessEntry": _entry(parts, call)},
            "ListAccessEntries": lambda parts, call: {"accessEntries": sorted(parts.entries)},
            "UpdateAccessEntry": _update_entry,
            "DeleteAccessEntry": _delete_entry,
            "AssociateAccessPolicy": _associate_policy,
            "DisassociateAccessPolicy": _disassociate_policy,
            "ListAssociatedAccessPolicies": _list_policies,
            "CreatePodIdentityAssociation": associations.create,
            "DescribePodIdentityAssociation": lambda parts, call: {"association": associations.find(parts, call)},
            "ListPodIdentityAssociations": associations.list_all,
            "UpdatePodIdentityAssociation": associations.update,
            "DeletePodIdentityAssociation": associations.delete,
            "CreateNodegroup": self.node_groups.create,
            "DescribeNodegroup": lambda parts, call: {"nodegroup": node_groups.shown(node_groups.find(call))},
            "UpdateNodegroupConfig": self.node_groups.update_config,
            "UpdateNodegroupVersion": self.node_groups.update_version,
            "DeleteNodegroup": self.node_groups.delete,
        }

    def answer(self, call: Call, url: str) -> Answer | None:
        """The answer to an operation of ours; None for those that moto has. `url` is where this cloud listens."""
        with self._lock:
            key = (call.region, call.operation, str(call.params.get("clientRequestToken")))
            if key in self._answered:
                return self._answered[key]
            found = self._carried_out(call, url)
            if found is not None and call.params.get("clientRequestToken"):
                self._answered[key] = found
            return found

    def _carried_out(self, call: Call, url: str) -> Answer | None:
        if call.operation in _OF_CLUSTERS:
            return as_json(self._of_cluster(call, url))
        if call.operation == "DescribeAddonVersions":
            return as_json(addons.describe_versions(call))
        if call.operation in _TAGGING:
            return self._tagging(call)
        operation = self._operations.get(call.operation)
        if operation is None:
            return None
        return as_json(operation(self.of(call.region, str(call.params["clusterName"])), call))

    def _of_cluster(self, call: Call, url: str) -> Item:
        """Operations that name their cluster `name`."""
        if call.operation == "CreateCluster":
            return clusters.create(call, url, self.servers)
        if call.operation == "DescribeCluster":
            return clusters.describe(call, url, self.servers)
        if call.operation == "DeleteCluster":
            return clusters.delete(call, self._late_logs, url, self.servers)
        parts = self.of(call.region, str(call.params["name"]))
        if call.operation == "UpdateClusterConfig":
            return clusters.update_config(parts, call)
        if call.operation == "UpdateClusterVersion":
            return clusters.update_version(parts, call)
        update = parts.updates.get(str(call.params["updateId"]))
        if update is None:
            raise absent(f"No update found for ID: {call.params['updateId']}.")
        return {"update": update}

    def log_group_deleted(self, call: Call) -> None:
        """What EKS does when a deleted cluster's log group goes."""
        clusters.log_group_deleted(call, self._late_logs)

    def _tagging(self, call: Call) -> Answer | None:
        """Tags of a node group or of a part of ours; None for a cluster's."""
        arn = str(call.params["resourceArn"])
        if group := node_groups.with_arn(call.region, arn):
            return as_json(_TAGGING[call.operation](group.tags, call.params))
        named = _KINDS.search(arn)
        if named is None:
            return None
        item = self.of(call.region, named[1]).tagged(arn)
        if item is None:
            raise absent(f"No resource found: {arn}")
        return as_json(_TAGGING[call.operation](item["tags"], call.params))

    def of(self, region: str, cluster: str) -> Parts:
        """The parts of a cluster; raises `Error` if there is no such cluster."""
        live = _moto(region).clusters.get(cluster)
        if live is None:
            raise Error(404, "ResourceNotFoundException", f"No cluster found for name: {cluster}.")
        known = self._parts.get((region, cluster))
        made_with = str(live.created_at)
        if known is None or known.made_with != made_with:  # a cluster of this name was deleted with its parts
            known = self._parts[(region, cluster)] = Parts(made_with)
        return known

    def seen_by_scraper(self, region: str, cluster: str) -> tuple[str, Mapping[str, Any]]:
        """A cluster's authentication mode and its VPC configuration; raises `Error` if there is no such cluster."""
        self.of(region, cluster)
        live = _moto(region).clusters[cluster]
        return str(live.accessConfig["authenticationMode"]), live.resources_vpc_config

    def let_service_in(self, call: Call, cluster: str, role: str, policy: str) -> None:
        """The access entry that AWS makes for a role of its own, with a policy for the whole cluster."""
        parts, made = self.of(call.region, cluster), now()
        parts.entries[role] = {
            "clusterName": cluster,
            "principalArn": role,
            "kubernetesGroups": [],
            "accessEntryArn": arn_of(call, "access-entry", cluster, "role", ACCOUNT, _last(role), str(uuid.uuid4())),
            "createdAt": made,
            "modifiedAt": made,
            "tags": {},
            "username": role,
            "type": "STANDARD",
        }
        found = {"policyArn": policy, "accessScope": {"type": "cluster"}, "associatedAt": made, "modifiedAt": made}
        parts.policies[(role, policy)] = found

    def shut_service_out(self, region: str, cluster: str, role: str) -> None:
        """Ends such an entry; of a cluster that is gone it is gone."""
        if cluster in _moto(region).clusters:
            parts = self.of(region, cluster)
            parts.entries.pop(role, None)
            for key in [key for key in parts.policies if key[0] == role]:
                del parts.policies[key]

    def values(self, call: Call) -> Mapping[str, Any]:
        """What the ARNs of a call's needs have and its parameters have not: ids that AWS gave, an add-on's role."""
        params = call.params
        cluster, found = str(params.get("clusterName") or params.get("name", "")), dict[str, Any]()
        if "nodegroupName" in params and (live := _moto(call.region).clusters.get(cluster)):
            group = live.nodegroups.get(params["nodegroupName"])
            found["nodegroupUuid"] = str(group.arn).rpartition("/")[2] if group else "*"
        parts = self._parts.get((call.region, cluster))
        if parts and (addon := parts.addons.get(str(params.get("addonName")))):
            found["addonUuid"] = str(addon["addonArn"]).rpartition("/")[2]
        if parts and (entry := parts.entries.get(str(params.get("principalArn")))):
            found["accessEntryArn"] = str(entry["accessEntryArn"])
        given = params.get("podIdentityAssociations") or ()
        found["podIdentityRoles"] = [str(association["roleArn"]) for association in given]
        return found

    def forget(self) -> None:
        """Loses everything."""
        with self._lock:
            self._parts.clear()
            self._late_logs.clear()
            self._answered.clear()
            self.node_groups.drains.clear()
            self.servers = ApiServers()


def _last(arn: str) -> str:
    return arn.rpartition("/")[2]


def _moto(region: str) -> EKSBackend:
    return eks_backends[ACCOUNT][region]


def _kubernetes_version(call: Call) -> str:
    return str(_moto(call.region).clusters[str(call.params["clusterName"])].version)


def _tag(tags: dict[str, str], params: Mapping[str, Any]) -> Item:
    tags |= params["tags"]
    return {}


def _untag(tags: dict[str, str], params: Mapping[str, Any]) -> Item:
    for key in params["tagKeys"]:
        tags.pop(key, None)
    return {}


_TAGGING: Mapping[str, Callable[[dict[str, str], Mapping[str, Any]], Item]] = {
    "TagResource": _tag,
    "UntagResource": _untag,
    "ListTagsForResource": lambda tags, params: {"tags": tags},
}


# --- access entries --------------------------------------------------------------------------------------


def _create_entry(parts: Parts, call: Call) -> Item:
    params, principal = call.params, str(call.params["principalArn"])
    if principal in parts.entries:
        raise in_use("The specified access entry resource is already in use on this cluster.")
    _require_own(principal)
    if ":assumed-role/" in principal or not re.fullmatch(r"arn:aws[\w-]*:iam::\d{12}:(role|user)/.+", principal):
        raise wrong(f"The specified principalArn is invalid: invalid principal {principal}")
    if ":role/" in principal:
        require_role(principal)
    made = now()
    kind, _, name = principal.rpartition(":")[2].partition("/")
    parts.entries[principal] = {
        "clusterName": params["clusterName"],
        "principalArn": principal,
        "kubernetesGroups": params.get("kubernetesGroups") or [],
        "accessEntryArn": arn_of(
            call, "access-entry", str(params["clusterName"]), kind, ACCOUNT, name.rpartition("/")[2], str(uuid.uuid4())
        ),
        "createdAt": made,
        "modifiedAt": made,
        "tags": params.get("tags") or {},
        "username": params.get("username") or principal,
        "type": params.get("type") or "STANDARD",
    }
    return {"accessEntry": parts.entries[principal]}


def _require_own(principal: str) -> None:
    """AWS alone has entries for roles of services. The words are AWS's, as Terraform showed them to several."""
    if ":role/aws-service-role/" in principal:
        raise wrong(
            "The caller is not allowed to modify access entries with a principalArn value of a Service Linked Role"
        )


def _entry(parts: Parts, call: Call) -> Item:
    principal = str(call.params["principalArn"])
    if principal not in parts.entries:
        raise absent(f"The specified principalArn could not be found: {principal}")
    return parts.entries[principal]


def _update_entry(parts: Parts, call: Call) -> Item:
    _require_own(str(call.params["principalArn"]))
    entry = _entry(parts, call)
    entry |= {key: call.params[key] for key in ("kubernetesGroups", "username") if call.params.get(key) is not None}
    entry["modifiedAt"] = now()
    return {"accessEntry": entry}


def _delete_entry(parts: Parts, call: Call) -> Item:
    _require_own(str(call.params["principalArn"]))
    principal = str(_entry(parts, call)["principalArn"])
    del parts.entries[principal]
    for key in [key for key in parts.policies if key[0] == principal]:
        del parts.policies[key]
    return {}


def _associate_policy(parts: Parts, call: Call) -> Item:
    entry, policy = _entry(parts, call), str(call.params["policyArn"])
    if entry["type"] != "STANDARD":
        raise Error(
            400, "InvalidRequestException", f"Access policies need an entry of type STANDARD, not {entry['type']}"
        )
    if not _ACCESS_POLICY.fullmatch(policy):
        raise wrong(f"The policyArn parameter format is not valid: {policy}")
    made = now()
    found = {"policyArn": policy, "accessScope": call.params["accessScope"], "associatedAt": made, "modifiedAt": made}
    parts.policies[(entry["principalArn"], policy)] = found
    where = {"clusterName": call.params["clusterName"], "principalArn": entry["principalArn"]}
    return {**where, "associatedAccessPolicy": found}


def _disassociate_policy(parts: Parts, call: Call) -> Item:
    key = (str(_entry(parts, call)["principalArn"]), str(call.params["policyArn"]))
    if key not in parts.policies:
        raise absent(f"No such access policy association: {key[1]}")
    del parts.policies[key]
    return {}


def _list_policies(parts: Parts, call: Call) -> Item:
    principal = str(_entry(parts, call)["principalArn"])
    found = [policy for (of, _), policy in parts.policies.items() if of == principal]
    where = {"clusterName": call.params["clusterName"], "principalArn": principal}
    return {**where, "associatedAccessPolicies": found}
