"""Launch templates: each change is a new version, which becomes the default if the program wants that."""

from __future__ import annotations

from typing import Any

from modelfleet.infra.provider import Autoname, Call, Made, Props, Refused, ResourceDef
from tools.standin.aws import making
from tools.standin.aws.session import Aws

#: Inputs that go into the template's data; EC2 has other names for three of them.
_DATA = frozenset(
    {
        "blockDeviceMappings",
        "capacityReservationSpecification",
        "ebsOptimized",
        "imageId",
        "instanceMarketOptions",
        "instanceType",
        "metadataOptions",
        "monitoring",
        "networkInterfaces",
        "placement",
        "tagSpecifications",
        "userData",
        "vpcSecurityGroupIds",
    }
)
_RENAMED = {
    "vpcSecurityGroupIds": "SecurityGroupIds",
    "securityGroups": "Groups",
    "ipv6AddressCount": "Ipv6AddressCount",
}
#: The provider's schema has these as text.
_BOOLEANS = frozenset({"deleteOnTermination", "encrypted", "ebsOptimized", "associatePublicIpAddress"})
_OWN = frozenset({"description", "name", "namePrefix", "region", "tags", "updateDefaultVersion"})


def _data(inputs: Props) -> Props:
    """The inputs as EC2's `LaunchTemplateData`."""
    data: Props = {}
    for key in sorted(_DATA & inputs.keys()):
        if inputs[key] is not None:
            data[_RENAMED.get(key, making.capital(key))] = _form(key, inputs[key])
    return data


def _form(key: str, value: Any) -> Any:
    if key in _BOOLEANS:
        return value in (True, "true")
    if key == "tags":
        return making.as_tags(value)
    if isinstance(value, dict):
        return {
            _RENAMED.get(name, making.capital(name)): _form(name, item)
            for name, item in value.items()
            if item is not None
        }
    if isinstance(value, list):
        return [_form("", item) for item in value]
    return value


def _checked(operation: str, params: Props) -> Props:
    data = params["LaunchTemplateData"]
    making.validated("ec2", operation, params)
    if data.get("NetworkInterfaces") and data.get("SecurityGroupIds"):
        raise Refused(f"{operation}: InvalidParameterCombination: set the security groups in the network interfaces")
    return params


def _create(call: Call[Aws], inputs: Props) -> Made:
    ec2 = making.client(call, "ec2", inputs)
    params = {
        "LaunchTemplateName": inputs["name"],
        "LaunchTemplateData": _data(inputs),
        **({"VersionDescription": inputs["description"]} if inputs.get("description") else {}),
        **making.tag_specification(call, "launch-template", inputs),
    }
    answer = ec2.create_launch_template(**_checked("CreateLaunchTemplate", params))["LaunchTemplate"]
    id = answer["LaunchTemplateId"]
    return making.made(id, _outputs(call, id, inputs, 1, 1))


def _outputs(call: Call[Aws], id: str, inputs: Props, latest: int, default: int) -> Props:
    return {
        "arn": making.ec2_arn(call, inputs, "launch-template", id),
        "defaultVersion": default,
        "latestVersion": latest,
        "region": making.region(call, inputs),
        "tagsAll": call.session.tags(inputs),
    }


def _read(call: Call[Aws], id: str, state: Props) -> Props | None:
    ec2 = making.client(call, "ec2", state)
    found = making.unless_absent(lambda: ec2.describe_launch_templates(LaunchTemplateIds=[id])["LaunchTemplates"])
    if not found:
        return None
    latest = found[0]["LatestVersionNumber"]
    version = ec2.describe_launch_template_versions(LaunchTemplateId=id, Versions=[str(latest)])
    data = version["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    live: Props = {"name": found[0]["LaunchTemplateName"], "latestVersion": latest}
    live["defaultVersion"] = found[0]["DefaultVersionNumber"]
    if data.get("UserData") != _data(state).get("UserData"):
        live["userData"] = data.get("UserData")
    for key in ("metadataOptions", "blockDeviceMappings"):
        if _differs(_data(state).get(making.capital(key)), data.get(making.capital(key))):
            live[key] = _back(data.get(making.capital(key)))
    return {**state, **live, **making.live_tags(call, state, making.from_tags(found[0].get("Tags", [])))}


def _differs(wanted: Any, live: Any) -> bool:
    """Whether the template differs from what the program wants; extra fields from EC2 do not count."""
    if isinstance(wanted, dict):
        return not isinstance(live, dict) or any(_differs(item, live.get(key)) for key, item in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(live, list) or len(live) != len(wanted):
            return True
        return any(_differs(*pair) for pair in zip(wanted, live, strict=True))
    return wanted is not None and str(wanted).lower() != str(live).lower()


def _back(value: Any) -> Any:
    """EC2's form as Pulumi's; booleans become text where the schema has text."""
    if isinstance(value, dict):
        return {
            key[0].lower() + key[1:]: str(item).lower() if key[0].lower() + key[1:] in _BOOLEANS else _back(item)
            for key, item in value.items()
        }
    return [_back(item) for item in value] if isinstance(value, list) else value


def _update(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    ec2 = making.client(call, "ec2", inputs)
    latest, default = int(state.get("latestVersion", 1)), int(state.get("defaultVersion", 1))
    if _data(state) != _data(inputs):
        params = {"LaunchTemplateId": id, "LaunchTemplateData": _data(inputs)}
        answer = ec2.create_launch_template_version(**_checked("CreateLaunchTemplateVersion", params))
        latest = answer["LaunchTemplateVersion"]["VersionNumber"]
    if inputs.get("updateDefaultVersion") and default != latest:
        ec2.modify_launch_template(LaunchTemplateId=id, DefaultVersion=str(latest))
        default = latest
    making.retag(call, id, state, inputs)
    return _outputs(call, id, inputs, latest, default)


def _new_version(state: Props, inputs: Props) -> frozenset[str]:
    return frozenset({"defaultVersion", "latestVersion"}) if _data(state) != _data(inputs) else frozenset()


def _delete(call: Call[Aws], id: str, state: Props) -> None:
    making.unless_absent(lambda: making.client(call, "ec2", state).delete_launch_template(LaunchTemplateId=id))


RESOURCES = (
    ResourceDef(
        token="aws:ec2/launchTemplate:LaunchTemplate",
        inputs=_DATA | _OWN,
        outputs=frozenset({"arn", "defaultVersion", "latestVersion", "region", "tagsAll"}),
        force_new=frozenset({"name", "namePrefix", "region"}),
        changes_on_update=_new_version,
        autoname=Autoname("name", max_length=128, unless=frozenset({"namePrefix"})),
        create=_create,
        read=_read,
        update=_update,
        delete=_delete,
    ),
)
