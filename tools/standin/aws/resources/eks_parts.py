"""Add-ons, access entries, their policies, Pod Identity associations: arguments to calls of EKS and back.

Ids are those of the real provider. What EKS refuses, the emulated cloud refuses (`tools/cloud/backends`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from modelfleet.infra.provider import UNKNOWN, Call, InvokeDef, Made, Props, ResourceDef
from tools.standin.aws.making import client, live_tags, region, retag_eks, unless_absent
from tools.standin.aws.resources.s3_settings import same_json
from tools.standin.aws.session import Aws


def _eks(call: Call[Aws], props: Props) -> Any:
    return client(call, "eks", props)


def _given(props: Props, *names: str) -> Props:
    return {name: props[name] for name in names if props.get(name) is not None}


def _tags(call: Call[Aws], inputs: Props) -> Props:
    tags = call.session.tags(inputs)
    return {"tags": tags} if tags else {}


def _outputs(call: Call[Aws], inputs: Props, **more: str) -> Props:
    return {**more, "region": region(call, inputs), "tagsAll": call.session.tags(inputs)}


def _seen(state: Props, live: Props, names: Sequence[str]) -> Props:
    """What the account has of the inputs: all that an import needs, else what the program gave."""
    return {name: live[name] for name in names if live.get(name) and (name in state or not state)}


def _without(state: Props, names: Sequence[str]) -> Props:
    return {name: value for name, value in state.items() if name not in (*names, "tags")}


# --- add-on ----------------------------------------------------------------------------------------------

_ADDON_SETTINGS = ("addonVersion", "configurationValues", "podIdentityAssociations")


def _addon_of(props: Props) -> Props:
    return {"clusterName": props["clusterName"], "addonName": props["addonName"]}


def _create_addon(call: Call[Aws], inputs: Props) -> Made:
    params = {**_addon_of(inputs), **_given(inputs, *_ADDON_SETTINGS), **_tags(call, inputs)}
    if inputs.get("resolveConflictsOnCreate"):
        params["resolveConflicts"] = inputs["resolveConflictsOnCreate"]
    addon = _eks(call, inputs).create_addon(**params)["addon"]
    return Made(f"{inputs['clusterName']}:{inputs['addonName']}", _outputs(call, inputs, arn=addon["addonArn"]))


def _read_addon(call: Call[Aws], id: str, state: Props) -> Props | None:
    eks = _eks(call, state)
    cluster, _, name = id.partition(":")
    addon = unless_absent(lambda: eks.describe_addon(clusterName=cluster, addonName=name)["addon"])
    if not addon:
        return None
    roles = [
        _given(
            eks.describe_pod_identity_association(clusterName=cluster, associationId=arn.rpartition("/")[2])[
                "association"
            ],
            "roleArn",
            "serviceAccount",
        )
        for arn in addon.get("podIdentityAssociations", ())
    ]
    return {
        **_without(state, _ADDON_SETTINGS),
        **_seen(state, {**addon, "podIdentityAssociations": roles}, _ADDON_SETTINGS),
        "clusterName": cluster,
        "addonName": name,
        "arn": addon["addonArn"],
        "region": region(call, state),
        **live_tags(call, state, addon.get("tags", {})),
    }


def _update_addon(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    if any(inputs.get(name) != state.get(name) for name in _ADDON_SETTINGS):
        params = {**_addon_of(inputs), **_given(inputs, *_ADDON_SETTINGS)}
        if state.get("podIdentityAssociations") and not inputs.get("podIdentityAssociations"):
            params["podIdentityAssociations"] = []  # absent means "as it is"
        if inputs.get("resolveConflictsOnUpdate"):
            params["resolveConflicts"] = inputs["resolveConflictsOnUpdate"]
        _eks(call, inputs).update_addon(**params)
    retag_eks(call, state["arn"], state, inputs)
    return _outputs(call, inputs, arn=state["arn"])


def _delete_addon(call: Call[Aws], id: str, state: Props) -> None:
    unless_absent(lambda: _eks(call, state).delete_addon(**_addon_of(state)))


def _json_fault(inputs: Props) -> list[tuple[str, str]]:
    text = inputs.get("configurationValues")
    if text in (None, UNKNOWN):
        return []
    try:
        json.loads(text)
    except ValueError as error:
        return [("configurationValues", f"must be JSON text: {error}")]
    return []


ADDON = ResourceDef(
    token="aws:eks/addon:Addon",
    inputs=frozenset(
        {
            "addonName",
            "addonVersion",
            "clusterName",
            "configurationValues",
            "podIdentityAssociations",
            "region",
            "resolveConflictsOnCreate",
            "resolveConflictsOnUpdate",
            "tags",
        }
    ),
    required=frozenset({"addonName", "clusterName"}),
    outputs=frozenset({"arn", "region", "tagsAll"}),
    force_new=frozenset({"addonName", "clusterName", "region"}),
    same={"configurationValues": same_json},
    check=_json_fault,
    create=_create_addon,
    read=_read_addon,
    update=_update_addon,
    delete=_delete_addon,
)

# --- access entry ----------------------------------------------------------------------------------------

_ENTRY_SETTINGS = ("kubernetesGroups", "type")


def _entry_of(props: Props) -> Props:
    return {"clusterName": props["clusterName"], "principalArn": props["principalArn"]}


def _create_entry(call: Call[Aws], inputs: Props) -> Made:
    params = {**_entry_of(inputs), **_given(inputs, *_ENTRY_SETTINGS), **_tags(call, inputs)}
    entry = _eks(call, inputs).create_access_entry(**params)["accessEntry"]
    id = f"{inputs['clusterName']}:{inputs['principalArn']}"
    return Made(id, _outputs(call, inputs, accessEntryArn=entry["accessEntryArn"]))


def _read_entry(call: Call[Aws], id: str, state: Props) -> Props | None:
    cluster, _, principal = id.partition(":")
    where = {"clusterName": cluster, "principalArn": principal}
    entry = unless_absent(lambda: _eks(call, state).describe_access_entry(**where)["accessEntry"])
    if not entry:
        return None
    return {
        **_without(state, _ENTRY_SETTINGS),
        **_seen(state, entry, _ENTRY_SETTINGS),
        **where,
        "accessEntryArn": entry["accessEntryArn"],
        "region": region(call, state),
        **live_tags(call, state, entry.get("tags", {})),
    }


def _update_entry(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    if inputs.get("kubernetesGroups") != state.get("kubernetesGroups"):
        groups = inputs.get("kubernetesGroups") or []
        _eks(call, inputs).update_access_entry(**_entry_of(inputs), kubernetesGroups=groups)
    retag_eks(call, state["accessEntryArn"], state, inputs)
    return _outputs(call, inputs, accessEntryArn=state["accessEntryArn"])


def _delete_entry(call: Call[Aws], id: str, state: Props) -> None:
    unless_absent(lambda: _eks(call, state).delete_access_entry(**_entry_of(state)))


ACCESS = ResourceDef(
    token="aws:eks/accessEntry:AccessEntry",
    inputs=frozenset({"clusterName", "kubernetesGroups", "principalArn", "region", "tags", "type"}),
    required=frozenset({"clusterName", "principalArn"}),
    outputs=frozenset({"accessEntryArn", "region", "tagsAll"}),
    force_new=frozenset({"clusterName", "principalArn", "region", "type"}),
    create=_create_entry,
    read=_read_entry,
    update=_update_entry,
    delete=_delete_entry,
)

# --- policy of an access entry ---------------------------------------------------------------------------


def _policy_of(props: Props) -> Props:
    return {**_entry_of(props), "policyArn": props["policyArn"]}


def _associate(call: Call[Aws], inputs: Props) -> Made:
    _eks(call, inputs).associate_access_policy(**_policy_of(inputs), accessScope=inputs["accessScope"])
    id = "#".join((inputs["clusterName"], inputs["principalArn"], inputs["policyArn"]))
    return Made(id, {"region": region(call, inputs)})


def _read_policy(call: Call[Aws], id: str, state: Props) -> Props | None:
    cluster, principal, policy = id.split("#")
    where = {"clusterName": cluster, "principalArn": principal}
    found = unless_absent(
        lambda: _eks(call, state).list_associated_access_policies(**where)["associatedAccessPolicies"]
    )
    mine = [one for one in found or () if one["policyArn"] == policy]
    if not mine:
        return None
    scope = {name: value for name, value in mine[0]["accessScope"].items() if value}
    return {**state, **where, "policyArn": policy, "accessScope": scope, "region": region(call, state)}


def _disassociate(call: Call[Aws], id: str, state: Props) -> None:
    unless_absent(lambda: _eks(call, state).disassociate_access_policy(**_policy_of(state)))


ASSOCIATION = ResourceDef(
    token="aws:eks/accessPolicyAssociation:AccessPolicyAssociation",
    inputs=frozenset({"accessScope", "clusterName", "policyArn", "principalArn", "region"}),
    required=frozenset({"accessScope", "clusterName", "policyArn", "principalArn"}),
    outputs=frozenset({"region"}),
    create=_associate,
    read=_read_policy,
    update=None,
    delete=_disassociate,
)

# --- Pod Identity ----------------------------------------------------------------------------------------

_IDENTITY_SETTINGS = ("namespace", "roleArn", "serviceAccount")


def _create_identity(call: Call[Aws], inputs: Props) -> Made:
    params = {**_given(inputs, "clusterName", *_IDENTITY_SETTINGS), **_tags(call, inputs)}
    made = _eks(call, inputs).create_pod_identity_association(**params)["association"]
    return Made(made["associationId"], _outputs(call, inputs, **_given(made, "associationArn", "associationId")))


def _read_identity(call: Call[Aws], id: str, state: Props) -> Props | None:
    """As the real provider, it imports `cluster,id`."""
    given_cluster, _, association_id = id.rpartition(",")
    where = {"clusterName": given_cluster or state["clusterName"], "associationId": association_id}
    found = unless_absent(lambda: _eks(call, state).describe_pod_identity_association(**where)["association"])
    if not found:
        return None
    return {
        **_without(state, _IDENTITY_SETTINGS),
        **_given(found, "clusterName", "associationArn", "associationId", *_IDENTITY_SETTINGS),
        "region": region(call, state),
        **live_tags(call, state, found.get("tags", {})),
    }


def _update_identity(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    known = _given(state, "associationArn", "associationId")
    if inputs["roleArn"] != state.get("roleArn"):
        params = {"clusterName": inputs["clusterName"], "associationId": known["associationId"]}
        _eks(call, inputs).update_pod_identity_association(**params, roleArn=inputs["roleArn"])
    retag_eks(call, known["associationArn"], state, inputs)
    return _outputs(call, inputs, **known)


def _delete_identity(call: Call[Aws], id: str, state: Props) -> None:
    where = {"clusterName": state["clusterName"], "associationId": state["associationId"]}
    unless_absent(lambda: _eks(call, state).delete_pod_identity_association(**where))


IDENTITY = ResourceDef(
    token="aws:eks/podIdentityAssociation:PodIdentityAssociation",
    inputs=frozenset({"clusterName", "namespace", "region", "roleArn", "serviceAccount", "tags"}),
    required=frozenset({"clusterName", "namespace", "roleArn", "serviceAccount"}),
    outputs=frozenset({"associationArn", "associationId", "region", "tagsAll"}),
    force_new=frozenset({"clusterName", "namespace", "region", "serviceAccount"}),
    create=_create_identity,
    read=_read_identity,
    update=_update_identity,
    delete=_delete_identity,
)

# --- versions of add-ons ---------------------------------------------------------------------------------


def _get_addon_version(session: Aws, args: Props) -> Props:
    """EKS lists the newest first; the default one is marked."""
    wanted = {"addonName": args["addonName"], "kubernetesVersion": args["kubernetesVersion"]}
    (addon,) = session.client("eks", args.get("region")).describe_addon_versions(**wanted)["addons"]
    found = [
        one["addonVersion"]
        for one in addon["addonVersions"]
        if args.get("mostRecent") or any(fits["defaultVersion"] for fits in one["compatibilities"])
    ]
    return {**args, "id": args["addonName"], "version": found[0], "region": args.get("region") or session.region}


RESOURCES = (ADDON, ACCESS, ASSOCIATION, IDENTITY)
INVOKES = (InvokeDef("aws:eks/getAddonVersion:getAddonVersion", _get_addon_version),)
