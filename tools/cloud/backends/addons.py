"""EKS add-ons: versions, configuration values judged by the add-on's schema, roles of their service accounts.

    default_version("coredns", "1.35")
    refuse_configuration("vpc-cni", '{"enableNetworkPolicy": true}')   # raises `Error` as EKS answers

What there is of each add-on is in `addons.yaml`.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft6Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import ValidationError  # type: ignore[import-untyped]

from tools.cloud.answers import Error
from tools.cloud.backends.associations import associate, end_of_owner, require_pod_role
from tools.cloud.backends.parts import Item, Parts, absent, arn_of, in_use, now, wrong
from tools.cloud.wire import Call

TABLE = Path(__file__).with_name("addons.yaml")
#: Where the add-ons of the table run.
NAMESPACE = "kube-system"
_VERSION = re.compile(r"v\d+\.\d+\.\d+-eksbuild\.\d+")


@cache
def _table() -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return found


def default_version(addon: str, kubernetes_version: str) -> str:
    """EKS's default version of an add-on for a minor version of Kubernetes; raises `Error` without such an add-on."""
    if addon not in _table():
        raise absent(f"Addon {addon} specified is not supported")
    return str(_table()[addon]["version"]).format(minor=kubernetes_version)


# --- configuration values --------------------------------------------------------------------------------


def refuse_configuration(addon: str, values: str) -> None:
    """Raises `Error` for values that the add-on's schema does not take, in EKS's words.

    EKS quotes networknt's json-schema-validator. Its words for a type and for an unknown key:
    https://github.com/aws/eks-node-monitoring-agent/issues/241.
    """
    try:
        configuration = json.loads(values)
    except ValueError:
        raise wrong("ConfigurationValue provided in request is not supported") from None
    schema = _table()[addon]["configuration"]
    if schema is None:
        raise Error(501, "NotImplemented", f"tools/cloud/backends/{TABLE.name} has no configuration schema of {addon}")
    faults = sorted(fault for error in Draft6Validator(schema).iter_errors(configuration) for fault in _words(error))
    if faults:
        raise wrong(
            "ConfigurationValue provided in request is not supported: "
            f"Json schema validation failed with error: [{', '.join(faults)}]"
        )


def _words(error: ValidationError) -> list[str]:
    where = ".".join(("$", *(str(step) for step in error.absolute_path)))
    if error.validator == "type":
        return [f"{where}: {_type(error.instance)} found, {error.validator_value} expected"]
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {}) if isinstance(error.schema, Mapping) else {}
        more = [name for name in error.instance if name not in known]
        return [
            f"{where}.{name}: is not defined in the schema and the schema does not allow additional properties"
            for name in more
        ]
    return [f"{where}: {error.message}"]


def _type(value: Any) -> str:
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "boolean"),
        (int, "integer"),
        (float, "number"),
        (str, "string"),
        (list, "array"),
        (dict, "object"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


# --- operations ------------------------------------------------------------------------------------------


def describe_versions(call: Call) -> Item:
    """DescribeAddonVersions, for one version of Kubernetes: the newest build follows the default one."""
    minor = call.params.get("kubernetesVersion")
    if not minor:
        raise Error(501, "NotImplemented", "DescribeAddonVersions without kubernetesVersion")
    wanted = call.params.get("addonName")
    if wanted is not None:
        default_version(str(wanted), minor)
    names = [wanted] if wanted else sorted(_table())
    return {"addons": [{"addonName": name, "addonVersions": _versions(name, minor)} for name in names]}


def _versions(addon: str, minor: str) -> list[Item]:
    default = default_version(addon, minor)
    release, _, build = default.rpartition(".")
    return [
        {"addonVersion": version, "compatibilities": [{"clusterVersion": minor, "defaultVersion": version == default}]}
        for version in (f"{release}.{int(build) + 1}", default)
    ]


def create(parts: Parts, call: Call, kubernetes_version: str) -> Item:
    """CreateAddon."""
    params, name = call.params, str(call.params["addonName"])
    if name in parts.addons:
        raise in_use("Addon already exists.")
    if name not in _table():
        raise wrong("Addon specified is not supported")
    _check(name, params)
    made, arn = now(), arn_of(call, "addon", str(params["clusterName"]), name, str(uuid.uuid4()))
    parts.addons[name] = {
        "addonName": name,
        "clusterName": params["clusterName"],
        "status": "ACTIVE",
        "addonVersion": params.get("addonVersion") or default_version(name, kubernetes_version),
        "health": {"issues": []},
        "addonArn": arn,
        "createdAt": made,
        "modifiedAt": made,
        "tags": dict(params.get("tags") or {}),
        **{key: params[key] for key in ("configurationValues", "serviceAccountRoleArn") if params.get(key)},
        "podIdentityAssociations": _associate(parts, call, arn),
    }
    return {"addon": parts.addons[name]}


def _check(addon: str, params: Mapping[str, Any]) -> None:
    version = params.get("addonVersion")
    if version is not None and not _VERSION.fullmatch(str(version)):
        raise wrong(f"Addon version specified is not supported: {version}")
    if values := params.get("configurationValues"):
        refuse_configuration(addon, values)
    for association in params.get("podIdentityAssociations") or ():
        require_pod_role(str(association["roleArn"]))


def _associate(parts: Parts, call: Call, owner: str) -> list[str]:
    """The add-on's associations: "all previous pod identity associations are overwritten".

    https://docs.aws.amazon.com/eks/latest/userguide/update-addon-role.html
    """
    end_of_owner(parts, owner)
    wanted = call.params.get("podIdentityAssociations") or ()
    return [associate(parts, call, {**one, "namespace": NAMESPACE}, owner)["associationArn"] for one in wanted]


def find(parts: Parts, call: Call) -> Item:
    """The add-on that the call names; raises `Error` if there is none."""
    name = str(call.params["addonName"])
    if name not in parts.addons:
        raise absent(f"No addon: {name} found in cluster: {call.params['clusterName']}")
    return parts.addons[name]


def update(parts: Parts, call: Call) -> Item:
    """UpdateAddon."""
    addon = find(parts, call)
    _check(addon["addonName"], call.params)
    addon |= {key: call.params[key] for key in ("addonVersion", "configurationValues") if call.params.get(key)}
    if call.params.get("podIdentityAssociations") is not None:
        addon["podIdentityAssociations"] = _associate(parts, call, addon["addonArn"])
    addon["modifiedAt"] = now()
    done = {"id": str(uuid.uuid4()), "status": "Successful", "type": "AddonUpdate", "params": [], "errors": []}
    return {"update": {**done, "createdAt": now()}}


def delete(parts: Parts, call: Call) -> Item:
    """DeleteAddon: its associations end with it."""
    addon = find(parts, call)
    end_of_owner(parts, addon["addonArn"])
    del parts.addons[addon["addonName"]]
    return {"addon": {**addon, "status": "DELETING"}}
