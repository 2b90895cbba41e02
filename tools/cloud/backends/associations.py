"""EKS Pod Identity associations: a service account's role. Those of an add-on belong to it and end with it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from tools.cloud.backends.parts import Item, Parts, absent, arn_of, in_use, now, require_role, wrong
from tools.cloud.callers import trust_of
from tools.cloud.evaluator import as_list
from tools.cloud.wire import Call

POD_IDENTITY_SERVICE = "pods.eks.amazonaws.com"


def require_pod_role(arn: str) -> None:
    """Raises `Error` unless the role trusts EKS's service with both actions.

    https://docs.aws.amazon.com/eks/latest/userguide/pod-id-role.html
    """
    require_role(arn)
    theirs = [
        statement
        for statement in trust_of(arn)
        if isinstance(statement.get("Principal"), Mapping)
        and POD_IDENTITY_SERVICE in as_list(statement["Principal"].get("Service", []))
    ]
    actions = {str(action).lower() for statement in theirs for action in as_list(statement["Action"])}
    if not {"sts:assumerole", "sts:tagsession"} <= actions and "sts:*" not in actions:
        raise wrong("Trust policy of the role should allow sts:AssumeRole and sts:TagSession to pods.eks.amazonaws.com")


def create(parts: Parts, call: Call) -> Item:
    """CreatePodIdentityAssociation."""
    return {"association": associate(parts, call, call.params)}


def associate(parts: Parts, call: Call, wanted: Mapping[str, Any], owner: str | None = None) -> Item:
    """A new association of a namespace's service account with a role; `owner` is an add-on's ARN."""
    require_pod_role(str(wanted["roleArn"]))
    if association_of(parts, str(wanted["namespace"]), str(wanted["serviceAccount"])):
        raise in_use(f"Association already exists: {wanted['namespace']}/{wanted['serviceAccount']}")
    made, id, cluster = now(), f"a-{uuid.uuid4().hex[:17]}", str(call.params["clusterName"])
    parts.associations[id] = {
        **{key: wanted[key] for key in ("namespace", "serviceAccount", "roleArn")},
        "clusterName": cluster,
        "associationArn": arn_of(call, "podidentityassociation", cluster, id),
        "associationId": id,
        "tags": dict(wanted.get("tags") or {}),
        "createdAt": made,
        "modifiedAt": made,
        "disableSessionTags": bool(wanted.get("disableSessionTags")),
        **({"ownerArn": owner} if owner else {}),
    }
    return parts.associations[id]


def association_of(parts: Parts, namespace: str, service_account: str) -> Item | None:
    """The association of a service account, if it has one."""
    wanted = (namespace, service_account)
    return next((a for a in parts.associations.values() if (a["namespace"], a["serviceAccount"]) == wanted), None)


def end_of_owner(parts: Parts, owner: str) -> None:
    """Ends the associations of an add-on."""
    for id in [id for id, one in parts.associations.items() if one.get("ownerArn") == owner]:
        del parts.associations[id]


def find(parts: Parts, call: Call) -> Item:
    """The association that the call names; raises `Error` if there is none."""
    id = str(call.params["associationId"])
    if id not in parts.associations:
        raise absent(f"No association found with id {id}")
    return parts.associations[id]


def list_all(parts: Parts, call: Call) -> Item:
    """ListPodIdentityAssociations."""
    shown = ("clusterName", "namespace", "serviceAccount", "associationArn", "associationId", "ownerArn")
    found = [
        {key: association[key] for key in shown if key in association}
        for association in parts.associations.values()
        if all(call.params.get(key) in (None, association[key]) for key in ("namespace", "serviceAccount"))
    ]
    return {"associations": found}


def update(parts: Parts, call: Call) -> Item:
    """UpdatePodIdentityAssociation."""
    association = find(parts, call)
    if call.params.get("roleArn"):
        require_pod_role(str(call.params["roleArn"]))
        association["roleArn"] = call.params["roleArn"]
    association["modifiedAt"] = now()
    return {"association": association}


def delete(parts: Parts, call: Call) -> Item:
    """DeletePodIdentityAssociation."""
    return {"association": parts.associations.pop(str(find(parts, call)["associationId"]))}
