"""`aws:eks/cluster:Cluster`: moto keeps the cluster; the table keeps what moto lacks.

moto has no access config, upgrade policy, deletion protection or version updates. It answers `update_cluster_config`
with nothing and then has lost the subnets. So moto gets the create and the delete; what changes is in the table entry
`eks/clusters/<name>`, which `read` returns.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from modelfleet.infra.provider import UNKNOWN, Autoname, Call, InvokeDef, Made, Props, Refused, ResourceDef
from tools.standin.aws.making import client, live_tags, made, region, retag_eks, unless_absent
from tools.standin.aws.resources.kms_logs import late_logs
from tools.standin.aws.session import Aws
from tools.standin.aws.table import Table, validated

#: Kubernetes minor versions for new clusters; the stand-in's own data, not AWS's answer.
VERSIONS = ("1.32", "1.33", "1.34", "1.35", "1.36")
#: Names a file with a test control plane's URL (line 1) and CA in base64 (line 2), which replace moto's fakes.
OVERLAY = "MODELFLEET_STANDIN_EKS_ENDPOINT_FILE"

_INPUTS = frozenset(
    {
        "accessConfig",
        "bootstrapSelfManagedAddons",
        "deletionProtection",
        "enabledClusterLogTypes",
        "encryptionConfig",
        "name",
        "region",
        "roleArn",
        "tags",
        "upgradePolicy",
        "version",
        "vpcConfig",
    }
)


def entry(name: str) -> str:
    """The table key of a cluster."""
    return f"eks/clusters/{name}"


def _vpc(inputs: Props) -> Props:
    vpc = inputs["vpcConfig"]
    names = ("subnetIds", "securityGroupIds", "endpointPrivateAccess", "endpointPublicAccess", "publicAccessCidrs")
    return {key: vpc[key] for key in names if vpc.get(key) is not None}


def _request(call: Call[Aws], inputs: Props) -> Props:
    """The complete CreateCluster call, as AWS would receive it."""
    request: Props = {
        "name": inputs["name"],
        "roleArn": inputs["roleArn"],
        "resourcesVpcConfig": _vpc(inputs),
        "version": inputs.get("version") or VERSIONS[-1],
        "tags": call.session.tags(inputs),
    }
    for key in ("accessConfig", "bootstrapSelfManagedAddons", "deletionProtection", "upgradePolicy"):
        if inputs.get(key) is not None:
            request[key] = inputs[key]
    if types := inputs.get("enabledClusterLogTypes"):
        request["logging"] = {"clusterLogging": [{"types": types, "enabled": True}]}
    if encryption := inputs.get("encryptionConfig"):
        provider = {"keyArn": encryption["provider"]["keyArn"]}
        request["encryptionConfig"] = [{"resources": encryption["resources"], "provider": provider}]
    return request


def _refuse(call: Call[Aws], request: Props) -> None:
    """Refuses what moto accepts and AWS does not: an unknown version, absent subnets or roles, subnets in one zone."""
    if request["version"] not in VERSIONS:
        raise Refused(f"CreateCluster: InvalidParameterException: unsupported Kubernetes version {request['version']}")
    if len(_zones(call, request)) < 2:
        raise Refused(
            "CreateCluster: InvalidParameterException: Subnets specified must be in at least two different AZs"
        )
    call.session.client("iam", "us-east-1").get_role(RoleName=request["roleArn"].rpartition("/")[2])


def _zones(call: Call[Aws], request: Props) -> set[str]:
    """The zones of the control plane's subnets."""
    ids = request["resourcesVpcConfig"]["subnetIds"]
    return {
        subnet["AvailabilityZone"] for subnet in call.session.client("ec2").describe_subnets(SubnetIds=ids)["Subnets"]
    }


def _refuse_other_zones(call: Call[Aws], extra: Props, request: Props) -> None:
    """EKS takes other subnets, but only in the zones that the cluster was made with.

    https://docs.aws.amazon.com/eks/latest/userguide/network-reqs.html; the words are EKS's.
    """
    wanted, first = _zones(call, request), set(extra["zones"])
    if wanted != first:
        raise Refused(
            f"UpdateClusterConfig: InvalidParameterException: Provided subnets belong to the AZs "
            f"'{','.join(sorted(wanted))}'. But they should belong to the exact set of AZs '{','.join(sorted(first))}' "
            "in which subnets were provided during cluster creation."
        )


def _create(call: Call[Aws], inputs: Props) -> Made:
    request = validated("eks", "CreateCluster", _request(call, inputs))
    _refuse(call, request)
    kept = {key: request[key] for key in request if key in _MOTO}
    client(call, "eks", inputs).create_cluster(**kept)
    name = inputs["name"]
    done = made(name, {"tagsAll": request["tags"]}, lambda: _note(call, inputs, request))
    return Made(done.id, _outputs(call, name, inputs, Table(call.session).get(entry(name))))


def _note(call: Call[Aws], inputs: Props, request: Props) -> None:
    """Writes the table's part of a cluster."""
    zones = sorted(_zones(call, request))
    extra = {"request": request, "securityGroupId": _security_group(call, inputs), "zones": zones}
    Table(call.session).put(entry(inputs["name"]), extra)


_MOTO = frozenset({"name", "roleArn", "resourcesVpcConfig", "version", "tags", "logging", "encryptionConfig"})


def _security_group(call: Call[Aws], inputs: Props) -> str:
    """The cluster's own group, which EKS makes and deletes with the cluster."""
    ec2 = client(call, "ec2", inputs)
    name = f"eks-cluster-sg-{inputs['name']}"
    vpc = ec2.describe_subnets(SubnetIds=[inputs["vpcConfig"]["subnetIds"][0]])["Subnets"][0]["VpcId"]
    there = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}])["SecurityGroups"]
    if there:
        return str(there[0]["GroupId"])
    return str(ec2.create_security_group(GroupName=name, Description="EKS", VpcId=vpc)["GroupId"])


def _api_server(session: Aws, live: Props) -> tuple[str, str]:
    """The URL and CA of the API server: those of a test control plane, or the emulator's own port, which answers."""
    if path := os.environ.get(OVERLAY):
        with open(path, encoding="utf-8") as stream:  # noqa: PTH123 - two lines
            endpoint, authority = stream.read().split()
        return endpoint, authority
    port = urlsplit(session.endpoint("eks")).port
    return f"https://127.0.0.1:{port}", live["certificateAuthority"]["data"]


def _get_clusters(session: Aws, args: Props) -> Props:
    where = args.get("region") or session.region
    pages = session.client("eks", where).get_paginator("list_clusters").paginate()
    return {**args, "id": where, "region": where, "names": [name for page in pages for name in page["clusters"]]}


def _get_cluster(session: Aws, args: Props) -> Props:
    live = session.client("eks", args.get("region")).describe_cluster(name=args["name"])["cluster"]
    endpoint, authority = _api_server(session, live)
    return {
        **args,
        "id": args["name"],
        "region": args.get("region") or session.region,
        "arn": live["arn"],
        "endpoint": endpoint,
        "certificateAuthorities": [{"data": authority}],
        "status": live["status"],
        "version": live["version"],
    }


def _outputs(call: Call[Aws], name: str, inputs: Props, extra: Props) -> Props:
    live = client(call, "eks", inputs).describe_cluster(name=name)["cluster"]
    endpoint, authority = _api_server(call.session, live)
    vpc = inputs["vpcConfig"]
    subnet = client(call, "ec2", inputs).describe_subnets(SubnetIds=[vpc["subnetIds"][0]])["Subnets"][0]
    return {
        "arn": live["arn"],
        "certificateAuthority": {"data": authority},
        "certificateAuthorities": [{"data": authority}],
        "endpoint": endpoint,
        "identities": [{"oidcs": [{"issuer": live["identity"]["oidc"]["issuer"]}]}],
        "platformVersion": live["platformVersion"],
        "region": region(call, inputs),
        "status": live["status"],
        "tagsAll": call.session.tags(inputs),
        "vpcConfig": {**vpc, "clusterSecurityGroupId": extra["securityGroupId"], "vpcId": subnet["VpcId"]},
    }


def _read(call: Call[Aws], id: str, state: Props) -> Props | None:
    answer = unless_absent(lambda: client(call, "eks", state).describe_cluster(name=id))
    extra = Table(call.session).find(entry(id))
    if not answer or extra is None:
        return None
    live = answer["cluster"]
    request = extra["request"]
    outputs = _outputs(call, id, {**state, "vpcConfig": {**state["vpcConfig"], **request["resourcesVpcConfig"]}}, extra)
    seen = {key: request.get(key) for key in ("accessConfig", "deletionProtection", "upgradePolicy", "version")}
    logs = [
        t for item in request.get("logging", {}).get("clusterLogging", []) if item["enabled"] for t in item["types"]
    ]
    return {
        **state,
        **outputs,
        **{key: value for key, value in seen.items() if key in state},
        "name": id,
        "roleArn": live["roleArn"],
        "enabledClusterLogTypes": logs,
        **live_tags(call, state, live.get("tags", {})),
    }


def _update(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    table = Table(call.session)
    request = _request(call, inputs)
    if table.find(entry(id)) is None:  # its creation stopped half-way
        _note(call, inputs, request)
    extra = table.get(entry(id))
    request = {**extra["request"], **request}
    _refuse_other_zones(call, extra, request)
    for operation, params in _changes(id, extra["request"], request):
        table.call("eks", operation, params)
    retag_eks(call, client(call, "eks", inputs).describe_cluster(name=id)["cluster"]["arn"], state, inputs)
    extra["request"] = request
    table.put(entry(id), extra)
    return _outputs(call, id, inputs, extra)


def _changes(name: str, old: Props, new: Props) -> list[tuple[str, Props]]:
    """The update calls that AWS would receive: it wants one for each kind of change."""
    calls: list[tuple[str, Props]] = []
    if old.get("version") != new["version"]:
        calls.append(("UpdateClusterVersion", {"name": name, "version": new["version"]}))
    for key in ("resourcesVpcConfig", "logging", "upgradePolicy", "deletionProtection", "accessConfig"):
        if old.get(key) != new.get(key) and new.get(key) is not None:
            value = new[key]
            if key == "accessConfig":
                value = {"authenticationMode": value["authenticationMode"]}
            calls.append(("UpdateClusterConfig", {"name": name, key: value}))
    return calls


def _delete(call: Call[Aws], id: str, state: Props) -> None:
    table = Table(call.session)
    extra = table.find(entry(id))
    if extra and extra["request"].get("deletionProtection"):
        raise Refused(f"DeleteCluster: InvalidRequestException: cluster {id} has deletion protection")
    unless_absent(lambda: client(call, "eks", state).delete_cluster(name=id))
    if extra and extra["request"].get("logging"):
        table.put(late_logs(f"/aws/eks/{id}/cluster"), {})
    if extra:
        ec2 = client(call, "ec2", state)
        unless_absent(lambda: ec2.delete_security_group(GroupId=extra["securityGroupId"]))
    table.delete(entry(id))


def _preview(inputs: Props) -> Props:
    """An input with computed parts: until the cluster is made, these are unknown rather than absent."""
    return {"vpcConfig": {**inputs["vpcConfig"], "clusterSecurityGroupId": UNKNOWN, "vpcId": UNKNOWN}}


def _check(inputs: Props) -> list[tuple[str, str]]:
    vpc: Any = inputs.get("vpcConfig")
    subnets = vpc.get("subnetIds") if isinstance(vpc, dict) else UNKNOWN
    if subnets != UNKNOWN and isinstance(subnets, list) and len(subnets) < 2:
        return [("vpcConfig.subnetIds", "EKS needs subnets in at least two zones")]
    return []


INVOKES = (
    InvokeDef("aws:eks/getClusters:getClusters", _get_clusters),
    InvokeDef("aws:eks/getCluster:getCluster", _get_cluster),
)
RESOURCES = (
    ResourceDef(
        token="aws:eks/cluster:Cluster",
        inputs=_INPUTS,
        required=frozenset({"roleArn", "vpcConfig"}),
        outputs=frozenset(
            {
                "arn",
                "certificateAuthorities",
                "certificateAuthority",
                "endpoint",
                "identities",
                "platformVersion",
                "region",
                "status",
                "tagsAll",
                "vpcConfig",
            }
        ),
        # terraform-provider-aws internal/service/eks/cluster.go
        force_new=frozenset(
            {
                "accessConfig.bootstrapClusterCreatorAdminPermissions",
                "bootstrapSelfManagedAddons",
                "encryptionConfig",
                "name",
                "region",
                "roleArn",
            }
        ),
        autoname=Autoname("name", max_length=100),
        check=_check,
        preview=_preview,
        create=_create,
        read=_read,
        update=_update,
        delete=_delete,
    ),
)
