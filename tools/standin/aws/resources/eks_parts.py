"""Add-ons, access entries, their policies, Pod Identity, tags of Auto Scaling groups: table only, as moto has none.

Each call is validated against botocore's model. The cluster and the role must exist, and a duplicate is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from modelfleet.infra.provider import UNKNOWN, Call, InvokeDef, Made, Props, Refused, ResourceDef
from tools.standin.aws.making import ACCOUNT, live_tags, region, unless_absent
from tools.standin.aws.resources._addon_schema import refuse_configuration
from tools.standin.aws.resources.s3_settings import same_json
from tools.standin.aws.session import Aws
from tools.standin.aws.table import Table, service_model

#: EKS's default version by add-on and Kubernetes minor version; the stand-in's own data, in the form of real ones.
ADDON_VERSIONS = {
    "aws-ebs-csi-driver": "v1.51.0-eksbuild.1",
    "coredns": "v1.12.4-eksbuild.1",
    "eks-node-monitoring-agent": "v1.4.1-eksbuild.1",
    "eks-pod-identity-agent": "v1.3.9-eksbuild.3",
    "kube-proxy": "v{minor}.0-eksbuild.2",
    "metrics-server": "v0.8.0-eksbuild.3",
    "vpc-cni": "v1.20.4-eksbuild.1",
}
_CLUSTER_POLICIES = "arn:aws:eks::aws:cluster-access-policy/"


def addon_version(addon: str, kubernetes_version: str) -> str:
    """The default version of an add-on; raises `Refused` if the table does not have it."""
    if addon not in ADDON_VERSIONS:
        raise Refused(f"DescribeAddonVersions: ResourceNotFoundException: no add-on named {addon}")
    return ADDON_VERSIONS[addon].format(minor=kubernetes_version)


def _cluster(call: Call[Aws], name: str) -> Any:
    """The cluster; raises AWS's refusal if it does not exist."""
    found = unless_absent(lambda: call.session.client("eks").describe_cluster(name=name)["cluster"])
    if not found:
        raise Refused(f"ResourceNotFoundException: No cluster found for name: {name}.")
    return found


def _cluster_is_there(call: Call[Aws], props: Props) -> bool:
    """Whether the part's cluster exists; AWS deletes the parts with it."""
    name = props["clusterName"]
    return bool(unless_absent(lambda: call.session.client("eks").describe_cluster(name=name)))


def _role(call: Call[Aws], arn: str) -> None:
    call.session.client("iam", "us-east-1").get_role(RoleName=arn.rpartition("/")[2])


def _arn(call: Call[Aws], props: Props, kind: str, *parts: str) -> str:
    tail = "/".join(parts)
    return f"arn:aws:eks:{region(call, props)}:{ACCOUNT}:{kind}/{props['clusterName']}/{tail}"


def _table_type(
    token: str,
    *,
    kind: str,
    key: Callable[[Props], str],
    request: Callable[[Props], Props],
    operations: tuple[str, str, str],
    computed: Callable[[Call[Aws], Props, str], Props],
    check_live: Callable[[Call[Aws], Props], None],
    owner_is_there: Callable[[Call[Aws], Props], bool] = _cluster_is_there,
    service: str = "eks",
    tagged: bool = True,
    **definition: Any,
) -> ResourceDef[Aws]:
    """A resource type whose whole state is a table entry: the inputs as last written."""
    create_operation, update_operation, delete_operation = operations
    in_place = bool(update_operation)

    def path(props: Props) -> str:
        return f"{kind}/{key(props)}"

    def entry(call: Call[Aws], inputs: Props) -> Props:
        return {**inputs, "tagsAll": call.session.tags(inputs)} if tagged else dict(inputs)

    def create(call: Call[Aws], inputs: Props) -> Made:
        table = Table(call.session)
        check_live(call, inputs)
        tags = {"tags": call.session.tags(inputs)} if tagged and call.session.tags(inputs) else {}
        table.call(service, create_operation, {**request(inputs), **tags})
        if table.find(path(inputs)) is not None:
            raise Refused(f"{create_operation}: ResourceInUseException: {key(inputs)} already exists")
        table.put(path(inputs), entry(call, inputs))
        return Made(key(inputs).replace("/", ":"), made_outputs(call, inputs))

    def made_outputs(call: Call[Aws], props: Props) -> Props:
        tags = {"tagsAll": call.session.tags(props)} if tagged else {}
        return {**computed(call, props, key(props)), "region": region(call, props), **tags}

    def read(call: Call[Aws], id: str, state: Props) -> Props | None:
        found = Table(call.session).find(path(state) if state else f"{kind}/{id.replace(':', '/')}")
        if found is not None and not owner_is_there(call, found):
            Table(call.session).delete(path(found))
            return None
        if found is None:
            return None
        all_tags = found.pop("tagsAll", {})
        found.pop("tags", None)
        tags = live_tags(call, state, all_tags) if tagged else {}
        return {**{k: v for k, v in state.items() if k != "tags"}, **found, **tags}

    def update(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
        table = Table(call.session)
        check_live(call, inputs)
        table.call(service, update_operation, _for_update(service, update_operation, request(inputs)))
        table.put(path(inputs), entry(call, inputs))
        return made_outputs(call, inputs)

    def delete(call: Call[Aws], id: str, state: Props) -> None:
        table = Table(call.session)
        table.call(service, delete_operation, definition_delete(state))
        table.delete(path(state))

    definition_delete: Callable[[Props], Props] = definition.pop("delete_request")
    return ResourceDef(
        token=token, create=create, read=read, update=update if in_place else None, delete=delete, **definition
    )


def _for_update(service: str, operation: str, params: Props) -> Props:
    """The parameters that the update takes; the others are set on creation and cannot have changed."""
    shape: Any = service_model(service).operation_model(operation).input_shape
    return {name: value for name, value in params.items() if name in shape.members}


# --- add-on ----------------------------------------------------------------------------------------------


def _addon_request(inputs: Props) -> Props:
    request: Props = {"clusterName": inputs["clusterName"], "addonName": inputs["addonName"]}
    for key, name in (
        ("addonVersion", "addonVersion"),
        ("configurationValues", "configurationValues"),
        ("resolveConflictsOnCreate", "resolveConflicts"),
        ("podIdentityAssociations", "podIdentityAssociations"),
    ):
        if inputs.get(key) is not None:
            request[name] = inputs[key]
    return request


def _addon_live(call: Call[Aws], inputs: Props) -> None:
    minor = _cluster(call, inputs["clusterName"])["version"]
    addon_version(inputs["addonName"], minor)
    version = inputs.get("addonVersion")
    if version is not None and not re.fullmatch(r"v\d+\.\d+\.\d+-eksbuild\.\d+", version):
        raise Refused(f"CreateAddon: InvalidParameterException: unknown add-on version '{version}'")
    refuse_configuration(inputs["addonName"], json.loads(inputs.get("configurationValues") or "{}"))
    for association in inputs.get("podIdentityAssociations") or ():
        _role(call, association["roleArn"])


def _json_fault(inputs: Props) -> list[tuple[str, str]]:
    text = inputs.get("configurationValues")
    if text in (None, UNKNOWN):
        return []
    try:
        json.loads(text)
    except ValueError as error:
        return [("configurationValues", f"must be JSON text: {error}")]
    return []


ADDON = _table_type(
    "aws:eks/addon:Addon",
    kind="eks/addons",
    key=lambda props: f"{props['clusterName']}/{props['addonName']}",
    request=_addon_request,
    operations=("CreateAddon", "UpdateAddon", "DeleteAddon"),
    delete_request=lambda props: {"clusterName": props["clusterName"], "addonName": props["addonName"]},
    computed=lambda call, props, key: {
        "arn": _arn(call, props, "addon", props["addonName"], hashlib.sha256(key.encode()).hexdigest()[:8])
    },
    check_live=_addon_live,
    check=_json_fault,
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
)

# --- access entry and its policy -------------------------------------------------------------------------


def _principal_live(call: Call[Aws], inputs: Props) -> None:
    _cluster(call, inputs["clusterName"])
    arn = inputs["principalArn"]
    if ":role/" in arn:
        _role(call, arn)  # EKS accepts only principals that exist
    elif ":assumed-role/" in arn:
        raise Refused(f"CreateAccessEntry: InvalidParameterException: {arn} is a session, not a role")


def _access_key(props: Props) -> str:
    return f"{props['clusterName']}/{props['principalArn'].replace('/', '|')}"


ACCESS = _table_type(
    "aws:eks/accessEntry:AccessEntry",
    kind="eks/access",
    key=_access_key,
    request=lambda inputs: {
        name: inputs[name] for name in ("clusterName", "principalArn", "type", "kubernetesGroups") if inputs.get(name)
    },
    operations=("CreateAccessEntry", "UpdateAccessEntry", "DeleteAccessEntry"),
    delete_request=lambda props: {"clusterName": props["clusterName"], "principalArn": props["principalArn"]},
    computed=lambda call, props, key: {"accessEntryArn": _arn(call, props, "access-entry", key.partition("/")[2])},
    check_live=_principal_live,
    inputs=frozenset({"clusterName", "kubernetesGroups", "principalArn", "region", "tags", "type"}),
    required=frozenset({"clusterName", "principalArn"}),
    outputs=frozenset({"accessEntryArn", "region", "tagsAll"}),
    force_new=frozenset({"clusterName", "principalArn", "region", "type"}),
)


def _association_live(call: Call[Aws], inputs: Props) -> None:
    if Table(call.session).find(f"eks/access/{_access_key(inputs)}") is None:
        raise Refused(f"AssociateAccessPolicy: ResourceNotFoundException: no access entry for {inputs['principalArn']}")
    if not inputs["policyArn"].startswith(_CLUSTER_POLICIES):
        raise Refused(
            f"AssociateAccessPolicy: InvalidParameterException: {inputs['policyArn']} is not an access policy"
        )


ASSOCIATION = _table_type(
    "aws:eks/accessPolicyAssociation:AccessPolicyAssociation",
    kind="eks/associations",
    key=lambda props: f"{_access_key(props)}/{props['policyArn'].rpartition('/')[2]}",
    request=lambda inputs: {name: inputs[name] for name in ("clusterName", "principalArn", "policyArn", "accessScope")},
    operations=("AssociateAccessPolicy", "", "DisassociateAccessPolicy"),
    delete_request=lambda props: {name: props[name] for name in ("clusterName", "principalArn", "policyArn")},
    computed=lambda call, props, key: {},
    check_live=_association_live,
    tagged=False,
    inputs=frozenset({"accessScope", "clusterName", "policyArn", "principalArn", "region"}),
    required=frozenset({"accessScope", "clusterName", "policyArn", "principalArn"}),
    outputs=frozenset({"region"}),
)

# --- Pod Identity ----------------------------------------------------------------------------------------


def _identity_live(call: Call[Aws], inputs: Props) -> None:
    _cluster(call, inputs["clusterName"])
    _role(call, inputs["roleArn"])
    role = call.session.client("iam", "us-east-1").get_role(RoleName=inputs["roleArn"].rpartition("/")[2])["Role"]
    trust = json.dumps(role["AssumeRolePolicyDocument"])
    if "pods.eks.amazonaws.com" not in trust or "sts:TagSession" not in trust:
        raise Refused("CreatePodIdentityAssociation: the role's trust lacks pods.eks.amazonaws.com or sts:TagSession")


IDENTITY = _table_type(
    "aws:eks/podIdentityAssociation:PodIdentityAssociation",
    kind="eks/pod-identity",
    key=lambda props: f"{props['clusterName']}/{props['namespace']}/{props['serviceAccount']}",
    request=lambda inputs: {name: inputs[name] for name in ("clusterName", "namespace", "serviceAccount", "roleArn")},
    # An update names the association by an id that only AWS assigns, so the stand-in validates it as a create.
    operations=("CreatePodIdentityAssociation", "CreatePodIdentityAssociation", "DeletePodIdentityAssociation"),
    delete_request=lambda props: {
        "clusterName": props["clusterName"],
        "associationId": f"a-{hashlib.sha256(props['serviceAccount'].encode()).hexdigest()[:17]}",
    },
    computed=lambda call, props, key: {
        "associationArn": _arn(
            call, props, "podidentityassociation", f"a-{hashlib.sha256(key.encode()).hexdigest()[:17]}"
        ),
        "associationId": f"a-{hashlib.sha256(key.encode()).hexdigest()[:17]}",
    },
    check_live=_identity_live,
    inputs=frozenset({"clusterName", "namespace", "region", "roleArn", "serviceAccount", "tags"}),
    required=frozenset({"clusterName", "namespace", "roleArn", "serviceAccount"}),
    outputs=frozenset({"associationArn", "associationId", "region", "tagsAll"}),
    force_new=frozenset({"clusterName", "namespace", "region", "serviceAccount"}),
)

# --- tags of Auto Scaling groups -------------------------------------------------------------------------


def _asg_request(inputs: Props) -> Props:
    tag = inputs["tag"]
    entry = {
        "ResourceId": inputs["autoscalingGroupName"],
        "ResourceType": "auto-scaling-group",
        "Key": tag["key"],
        "Value": tag["value"],
        "PropagateAtLaunch": tag["propagateAtLaunch"],
    }
    return {"Tags": [entry]}


def _group_is_there(call: Call[Aws], props: Props) -> bool:
    """Whether the Auto Scaling group's node group exists."""
    key = f"autoscaling/groups/{props['autoscalingGroupName']}"
    owner = Table(call.session).find(key)
    if owner and unless_absent(lambda: call.session.client("eks").describe_nodegroup(**owner)):
        return True
    Table(call.session).delete(key)
    return False


def _asg_live(call: Call[Aws], inputs: Props) -> None:
    if not _group_is_there(call, inputs):
        name = inputs["autoscalingGroupName"]
        raise Refused(f"CreateOrUpdateTags: ValidationError: AutoScalingGroup name not found - {name}")


ASG_TAG = _table_type(
    "aws:autoscaling/tag:Tag",
    service="autoscaling",
    kind="autoscaling/tags",
    key=lambda props: f"{props['autoscalingGroupName']}/{props['tag']['key'].replace('/', '|')}",
    request=_asg_request,
    operations=("CreateOrUpdateTags", "CreateOrUpdateTags", "DeleteTags"),
    delete_request=_asg_request,
    computed=lambda call, props, key: {},
    check_live=_asg_live,
    owner_is_there=_group_is_there,
    tagged=False,
    inputs=frozenset({"autoscalingGroupName", "region", "tag"}),
    required=frozenset({"autoscalingGroupName", "tag"}),
    outputs=frozenset({"region"}),
    force_new=frozenset({"autoscalingGroupName", "region", "tag.key"}),
)


def _get_addon_version(session: Aws, args: Props) -> Props:
    version = addon_version(args["addonName"], args["kubernetesVersion"])
    if args.get("mostRecent"):  # in the table the newest build follows the default
        release, _, build = version.rpartition(".")
        version = f"{release}.{int(build) + 1}"
    return {**args, "id": args["addonName"], "version": version, "region": args.get("region") or session.region}


RESOURCES = (ADDON, ACCESS, ASSOCIATION, IDENTITY, ASG_TAG)
INVOKES = (InvokeDef("aws:eks/getAddonVersion:getAddonVersion", _get_addon_version),)
