"""EKS add-ons, access entries with their policies, Pod Identity associations: create, describe, list, update, delete.

Operations, parameters and errors are those of botocore's model of EKS. Everything becomes ACTIVE at once, and ends with
its cluster, which is moto's.
https://docs.aws.amazon.com/eks/latest/APIReference/API_Operations.html
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from moto.eks.models import EKSBackend, eks_backends

from tools.cloud.answers import Answer, Error, as_json
from tools.cloud.callers import ACCOUNT, PARTITION, iam, trust_of
from tools.cloud.evaluator import as_list
from tools.cloud.wire import Call

Item = dict[str, Any]
#: Access policies that EKS has. https://docs.aws.amazon.com/eks/latest/userguide/access-policy-permissions.html
_ACCESS_POLICY = re.compile(r"arn:aws[\w-]*:eks::aws:cluster-access-policy/AmazonEKS\w+Policy")
_ADDON_VERSION = re.compile(r"v\d+\.\d+\.\d+-eksbuild\.\d+")
#: https://docs.aws.amazon.com/eks/latest/userguide/workloads-add-ons-available-eks.html
ADDONS = frozenset(
    {
        "aws-ebs-csi-driver",
        "coredns",
        "eks-node-monitoring-agent",
        "eks-pod-identity-agent",
        "kube-proxy",
        "metrics-server",
        "vpc-cni",
    }
)
POD_IDENTITY_SERVICE = "pods.eks.amazonaws.com"


@dataclass
class Parts:
    """What belongs to one cluster, by name: add-ons, access entries by principal, associations by id."""

    made_with: str
    addons: dict[str, Item] = field(default_factory=dict)
    entries: dict[str, Item] = field(default_factory=dict)
    policies: dict[tuple[str, str], Item] = field(default_factory=dict)
    associations: dict[str, Item] = field(default_factory=dict)


class Eks:
    """The parts of all clusters."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str], Parts] = {}
        self._lock = threading.RLock()
        self._operations: Mapping[str, Callable[[Parts, Call], Item]] = {
            "CreateAddon": _create_addon,
            "DescribeAddon": lambda parts, call: {"addon": _addon(parts, call)},
            "ListAddons": lambda parts, call: {"addons": sorted(parts.addons)},
            "UpdateAddon": _update_addon,
            "DeleteAddon": _delete_addon,
            "CreateAccessEntry": _create_entry,
            "DescribeAccessEntry": lambda parts, call: {"accessEntry": _entry(parts, call)},
            "ListAccessEntries": lambda parts, call: {"accessEntries": sorted(parts.entries)},
            "UpdateAccessEntry": _update_entry,
            "DeleteAccessEntry": _delete_entry,
            "AssociateAccessPolicy": _associate_policy,
            "DisassociateAccessPolicy": _disassociate_policy,
            "ListAssociatedAccessPolicies": _list_policies,
            "CreatePodIdentityAssociation": _create_association,
            "DescribePodIdentityAssociation": lambda parts, call: {"association": _association(parts, call)},
            "ListPodIdentityAssociations": _list_associations,
            "UpdatePodIdentityAssociation": _update_association,
            "DeletePodIdentityAssociation": _delete_association,
        }

    def answer(self, call: Call) -> Answer | None:
        """The answer to an operation of ours; None for those that moto has."""
        operation = self._operations.get(call.operation)
        if operation is None:
            return None
        with self._lock:
            return as_json(operation(self.of(call.region, str(call.params["clusterName"])), call))

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

    def values(self, call: Call) -> Mapping[str, Any]:
        """Ids in the ARN of a node group, an add-on or an access entry, which the request does not have."""
        params = call.params
        cluster, found = str(params.get("clusterName", "")), {}
        if "nodegroupName" in params and (live := _moto(call.region).clusters.get(cluster)):
            group = live.nodegroups.get(params["nodegroupName"])
            found["nodegroupUuid"] = str(group.arn).rpartition("/")[2] if group else "*"
        parts = self._parts.get((call.region, cluster))
        if parts and (addon := parts.addons.get(str(params.get("addonName")))):
            found["addonUuid"] = str(addon["addonArn"]).rpartition("/")[2]
        if parts and (entry := parts.entries.get(str(params.get("principalArn")))):
            found["accessEntryArn"] = str(entry["accessEntryArn"])
        return found

    def forget(self) -> None:
        """Loses everything."""
        with self._lock:
            self._parts.clear()


def _moto(region: str) -> EKSBackend:
    return eks_backends[ACCOUNT][region]


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _arn(call: Call, kind: str, *parts: str) -> str:
    return f"arn:{PARTITION}:eks:{call.region}:{ACCOUNT}:{kind}/{'/'.join(parts)}"


def _in_use(text: str) -> Error:
    return Error(409, "ResourceInUseException", text)


def _absent(text: str) -> Error:
    return Error(404, "ResourceNotFoundException", text)


def _wrong(text: str) -> Error:
    return Error(400, "InvalidParameterException", text)


def _require_role(arn: str) -> None:
    if arn not in {role.arn for role in list(iam().get_roles())}:
        raise _wrong(f"Role {arn} does not exist")


# --- add-ons ---------------------------------------------------------------------------------------------


def _create_addon(parts: Parts, call: Call) -> Item:
    params, name = call.params, str(call.params["addonName"])
    if name in parts.addons:
        raise _in_use("Addon already exists.")
    if name not in ADDONS:
        raise _wrong("Addon specified is not supported")
    _check_addon(params)
    made = _now()
    parts.addons[name] = {
        "addonName": name,
        "clusterName": params["clusterName"],
        "status": "ACTIVE",
        "addonVersion": params.get("addonVersion", "v1.0.0-eksbuild.1"),
        "health": {"issues": []},
        "addonArn": _arn(call, "addon", str(params["clusterName"]), name, str(uuid.uuid4())),
        "createdAt": made,
        "modifiedAt": made,
        "tags": params.get("tags") or {},
        **{key: params[key] for key in ("configurationValues", "serviceAccountRoleArn") if params.get(key)},
        "podIdentityAssociations": [],
    }
    return {"addon": parts.addons[name]}


def _check_addon(params: Mapping[str, Any]) -> None:
    version = params.get("addonVersion")
    if version is not None and not _ADDON_VERSION.fullmatch(str(version)):
        raise _wrong(f"Addon version specified is not supported: {version}")
    try:
        json.loads(params.get("configurationValues") or "{}")
    except ValueError:
        raise _wrong("ConfigurationValue provided in request is not supported") from None
    for association in params.get("podIdentityAssociations") or ():
        _require_pod_role(str(association["roleArn"]))


def _addon(parts: Parts, call: Call) -> Item:
    name = str(call.params["addonName"])
    if name not in parts.addons:
        raise _absent(f"No addon: {name} found in cluster: {call.params['clusterName']}")
    return parts.addons[name]


def _update_addon(parts: Parts, call: Call) -> Item:
    addon = _addon(parts, call)
    _check_addon(call.params)
    addon |= {key: call.params[key] for key in ("addonVersion", "configurationValues") if call.params.get(key)}
    addon["modifiedAt"] = _now()
    update = {"id": str(uuid.uuid4()), "status": "Successful", "type": "AddonUpdate", "params": [], "errors": []}
    return {"update": {**update, "createdAt": _now()}}


def _delete_addon(parts: Parts, call: Call) -> Item:
    addon = _addon(parts, call)
    del parts.addons[addon["addonName"]]
    return {"addon": {**addon, "status": "DELETING"}}


# --- access entries --------------------------------------------------------------------------------------


def _create_entry(parts: Parts, call: Call) -> Item:
    params, principal = call.params, str(call.params["principalArn"])
    if principal in parts.entries:
        raise _in_use("The specified access entry resource is already in use on this cluster.")
    if ":assumed-role/" in principal or not re.fullmatch(r"arn:aws[\w-]*:iam::\d{12}:(role|user)/.+", principal):
        raise _wrong(f"The specified principalArn is invalid: invalid principal {principal}")
    if ":role/" in principal:
        _require_role(principal)
    made = _now()
    kind, _, name = principal.rpartition(":")[2].partition("/")
    parts.entries[principal] = {
        "clusterName": params["clusterName"],
        "principalArn": principal,
        "kubernetesGroups": params.get("kubernetesGroups") or [],
        "accessEntryArn": _arn(
            call, "access-entry", str(params["clusterName"]), kind, ACCOUNT, name.rpartition("/")[2], str(uuid.uuid4())
        ),
        "createdAt": made,
        "modifiedAt": made,
        "tags": params.get("tags") or {},
        "username": params.get("username") or principal,
        "type": params.get("type") or "STANDARD",
    }
    return {"accessEntry": parts.entries[principal]}


def _entry(parts: Parts, call: Call) -> Item:
    principal = str(call.params["principalArn"])
    if principal not in parts.entries:
        raise _absent(f"The specified principalArn could not be found: {principal}")
    return parts.entries[principal]


def _update_entry(parts: Parts, call: Call) -> Item:
    entry = _entry(parts, call)
    entry |= {key: call.params[key] for key in ("kubernetesGroups", "username") if call.params.get(key) is not None}
    entry["modifiedAt"] = _now()
    return {"accessEntry": entry}


def _delete_entry(parts: Parts, call: Call) -> Item:
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
        raise _wrong(f"The policyArn parameter format is not valid: {policy}")
    made = _now()
    found = {"policyArn": policy, "accessScope": call.params["accessScope"], "associatedAt": made, "modifiedAt": made}
    parts.policies[(entry["principalArn"], policy)] = found
    where = {"clusterName": call.params["clusterName"], "principalArn": entry["principalArn"]}
    return {**where, "associatedAccessPolicy": found}


def _disassociate_policy(parts: Parts, call: Call) -> Item:
    key = (str(_entry(parts, call)["principalArn"]), str(call.params["policyArn"]))
    if key not in parts.policies:
        raise _absent(f"No such access policy association: {key[1]}")
    del parts.policies[key]
    return {}


def _list_policies(parts: Parts, call: Call) -> Item:
    principal = str(_entry(parts, call)["principalArn"])
    found = [policy for (of, _), policy in parts.policies.items() if of == principal]
    where = {"clusterName": call.params["clusterName"], "principalArn": principal}
    return {**where, "associatedAccessPolicies": found}


# --- Pod Identity associations ---------------------------------------------------------------------------


def _require_pod_role(arn: str) -> None:
    """EKS demands a trust in its service with both actions.

    https://docs.aws.amazon.com/eks/latest/userguide/pod-id-role.html
    """
    _require_role(arn)
    theirs = [
        statement
        for statement in trust_of(arn)
        if isinstance(statement.get("Principal"), Mapping)
        and POD_IDENTITY_SERVICE in as_list(statement["Principal"].get("Service", []))
    ]
    actions = {str(action).lower() for statement in theirs for action in as_list(statement["Action"])}
    if not {"sts:assumerole", "sts:tagsession"} <= actions and "sts:*" not in actions:
        raise _wrong(
            "Trust policy of the role should allow sts:AssumeRole and sts:TagSession to pods.eks.amazonaws.com"
        )


def _create_association(parts: Parts, call: Call) -> Item:
    params = call.params
    _require_pod_role(str(params["roleArn"]))
    if association_of(parts, str(params["namespace"]), str(params["serviceAccount"])):
        raise _in_use("Association already exists: " + f"{params['namespace']}/{params['serviceAccount']}")
    made, id = _now(), f"a-{uuid.uuid4().hex[:17]}"
    parts.associations[id] = {
        **{key: params[key] for key in ("clusterName", "namespace", "serviceAccount", "roleArn")},
        "associationArn": _arn(call, "podidentityassociation", str(params["clusterName"]), id),
        "associationId": id,
        "tags": params.get("tags") or {},
        "createdAt": made,
        "modifiedAt": made,
        "disableSessionTags": bool(params.get("disableSessionTags")),
    }
    return {"association": parts.associations[id]}


def association_of(parts: Parts, namespace: str, service_account: str) -> Item | None:
    """The association of a service account, if it has one."""
    wanted = (namespace, service_account)
    return next((a for a in parts.associations.values() if (a["namespace"], a["serviceAccount"]) == wanted), None)


def _association(parts: Parts, call: Call) -> Item:
    id = str(call.params["associationId"])
    if id not in parts.associations:
        raise _absent(f"No association found with id {id}")
    return parts.associations[id]


def _list_associations(parts: Parts, call: Call) -> Item:
    shown = ("clusterName", "namespace", "serviceAccount", "associationArn", "associationId")
    found = [
        {key: association[key] for key in shown}
        for association in parts.associations.values()
        if all(call.params.get(key) in (None, association[key]) for key in ("namespace", "serviceAccount"))
    ]
    return {"associations": found}


def _update_association(parts: Parts, call: Call) -> Item:
    association = _association(parts, call)
    if call.params.get("roleArn"):
        _require_pod_role(str(call.params["roleArn"]))
        association["roleArn"] = call.params["roleArn"]
    association["modifiedAt"] = _now()
    return {"association": association}


def _delete_association(parts: Parts, call: Call) -> Item:
    return {"association": parts.associations.pop(str(_association(parts, call)["associationId"]))}
