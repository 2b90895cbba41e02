"""VPC, subnets, gateways, addresses, endpoints. Force-new from terraform-provider-aws internal/service/ec2/vpc_*.go."""

from __future__ import annotations

from modelfleet.infra.provider import Call, InvokeDef, Made, NotDone, Props, ResourceDef
from tools.standin.aws import making
from tools.standin.aws.session import Aws

# --- VPC -------------------------------------------------------------------------------------------------

_DNS = {"enableDnsSupport": "EnableDnsSupport", "enableDnsHostnames": "EnableDnsHostnames"}


def _set_dns(call: Call[Aws], id: str, inputs: Props) -> None:
    for key, name in _DNS.items():
        if inputs.get(key) is not None:
            making.client(call, "ec2", inputs).modify_vpc_attribute(VpcId=id, **{name: {"Value": inputs[key]}})


def _vpc_outputs(call: Call[Aws], id: str, props: Props) -> Props:
    ec2 = making.client(call, "ec2", props)
    groups = ec2.describe_security_groups(
        Filters=[{"Name": "vpc-id", "Values": [id]}, {"Name": "group-name", "Values": ["default"]}]
    )["SecurityGroups"]
    return {
        "arn": making.ec2_arn(call, props, "vpc", id),
        "defaultSecurityGroupId": groups[0]["GroupId"],
        "ownerId": making.ACCOUNT,
        "region": making.region(call, props),
    }


def _create_vpc(call: Call[Aws], inputs: Props) -> Made:
    ec2 = making.client(call, "ec2", inputs)
    id = ec2.create_vpc(CidrBlock=inputs["cidrBlock"], **making.tag_specification(call, "vpc", inputs))["Vpc"]["VpcId"]
    outputs = {"arn": making.ec2_arn(call, inputs, "vpc", id), "tagsAll": call.session.tags(inputs)}
    done = making.made(id, outputs, lambda: _set_dns(call, id, inputs))
    return Made(id, {**done.outputs, **_vpc_outputs(call, id, inputs)})


def _read_vpc(call: Call[Aws], id: str, state: Props) -> Props | None:
    ec2 = making.client(call, "ec2", state)
    found = making.first(making.unless_absent(lambda: ec2.describe_vpcs(VpcIds=[id])["Vpcs"]))
    if not found:
        return None
    dns = {key: ec2.describe_vpc_attribute(VpcId=id, Attribute=key)[name]["Value"] for key, name in _DNS.items()}
    tags = making.live_tags(call, state, making.from_tags(found.get("Tags", [])))
    return {**state, "cidrBlock": found["CidrBlock"], **dns, **tags, **_vpc_outputs(call, id, state)}


def _update_vpc(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    _set_dns(call, id, inputs)
    return {**making.retag(call, id, state, inputs), **_vpc_outputs(call, id, inputs)}


def _delete_vpc(call: Call[Aws], id: str, state: Props) -> None:
    making.unless_absent(lambda: making.client(call, "ec2", state).delete_vpc(VpcId=id))


VPC = ResourceDef(
    token="aws:ec2/vpc:Vpc",
    inputs=frozenset({"cidrBlock", "enableDnsHostnames", "enableDnsSupport", "region", "tags"}),
    required=frozenset({"cidrBlock"}),
    outputs=frozenset({"arn", "defaultSecurityGroupId", "ownerId", "region", "tagsAll"}),
    force_new=frozenset({"cidrBlock", "region"}),
    defaults={"enableDnsSupport": True},
    create=_create_vpc,
    read=_read_vpc,
    update=_update_vpc,
    delete=_delete_vpc,
)

# --- default security group: adopted, emptied, and kept when the resource is deleted ----------------------


def _empty_group(call: Call[Aws], props: Props) -> str:
    ec2 = making.client(call, "ec2", props)
    filters = [{"Name": "vpc-id", "Values": [props["vpcId"]]}, {"Name": "group-name", "Values": ["default"]}]
    group = ec2.describe_security_groups(Filters=filters)["SecurityGroups"][0]
    if group["IpPermissions"]:
        ec2.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=group["IpPermissions"])
    if group["IpPermissionsEgress"]:
        ec2.revoke_security_group_egress(GroupId=group["GroupId"], IpPermissions=group["IpPermissionsEgress"])
    return str(group["GroupId"])


def _create_default_group(call: Call[Aws], inputs: Props) -> Made:
    id = _empty_group(call, inputs)
    outputs = {
        "arn": making.ec2_arn(call, inputs, "security-group", id),
        "name": "default",
        "region": making.region(call, inputs),
    }
    return making.made(
        id, {**outputs, "tagsAll": call.session.tags(inputs)}, lambda: making.retag(call, id, {}, inputs)
    )


def _read_default_group(call: Call[Aws], id: str, state: Props) -> Props | None:
    ec2 = making.client(call, "ec2", state)
    found = making.first(making.unless_absent(lambda: ec2.describe_security_groups(GroupIds=[id])["SecurityGroups"]))
    if not found:
        return None
    # A rule added by hand shows as a difference in `ingress` or `egress`, which the program leaves empty.
    opened = {
        key: [{"protocol": rule["IpProtocol"]} for rule in found[name]]
        for key, name in (("ingress", "IpPermissions"), ("egress", "IpPermissionsEgress"))
    }
    tags = making.live_tags(call, state, making.from_tags(found.get("Tags", [])))
    return {**state, "vpcId": found["VpcId"], **opened, **tags}


def _update_default_group(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    _empty_group(call, inputs)
    return making.retag(call, id, state, inputs)


def _no_rules(inputs: Props) -> list[tuple[str, str]]:
    kept = [key for key in ("ingress", "egress") if inputs.get(key)]
    return [(key, str(NotDone(f"aws:ec2/defaultSecurityGroup:DefaultSecurityGroup: rules in '{key}'"))) for key in kept]


DEFAULT_GROUP = ResourceDef(
    token="aws:ec2/defaultSecurityGroup:DefaultSecurityGroup",
    inputs=frozenset({"egress", "ingress", "region", "tags", "vpcId"}),
    required=frozenset({"vpcId"}),
    outputs=frozenset({"arn", "name", "region", "tagsAll"}),
    force_new=frozenset({"region", "vpcId"}),
    # As inputs on the wire, so that a rule added by hand is a difference and gets removed.
    defaults={"egress": [], "ingress": []},
    create=_create_default_group,
    read=_read_default_group,
    update=_update_default_group,
    delete=lambda call, id, state: None,
    check=_no_rules,
)

# --- subnet ----------------------------------------------------------------------------------------------


def _create_subnet(call: Call[Aws], inputs: Props) -> Made:
    ec2 = making.client(call, "ec2", inputs)
    wanted = making.given(inputs, "vpcId", "cidrBlock", "availabilityZone")
    id = ec2.create_subnet(**wanted, **making.tag_specification(call, "subnet", inputs))["Subnet"]["SubnetId"]
    outputs = {
        "arn": making.ec2_arn(call, inputs, "subnet", id),
        "region": making.region(call, inputs),
        "ownerId": making.ACCOUNT,
    }
    return making.made(id, {**outputs, "tagsAll": call.session.tags(inputs)}, lambda: _set_public(call, id, inputs))


def _set_public(call: Call[Aws], id: str, inputs: Props) -> None:
    if inputs.get("mapPublicIpOnLaunch") is not None:
        value = {"Value": inputs["mapPublicIpOnLaunch"]}
        making.client(call, "ec2", inputs).modify_subnet_attribute(SubnetId=id, MapPublicIpOnLaunch=value)


def _read_subnet(call: Call[Aws], id: str, state: Props) -> Props | None:
    ec2 = making.client(call, "ec2", state)
    found = making.first(making.unless_absent(lambda: ec2.describe_subnets(SubnetIds=[id])["Subnets"]))
    if not found:
        return None
    live = {
        "vpcId": found["VpcId"],
        "cidrBlock": found["CidrBlock"],
        "availabilityZone": found["AvailabilityZone"],
        "mapPublicIpOnLaunch": found["MapPublicIpOnLaunch"],
    }
    return {**state, **live, **making.live_tags(call, state, making.from_tags(found.get("Tags", [])))}


def _update_subnet(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    _set_public(call, id, inputs)
    return making.retag(call, id, state, inputs)


SUBNET = ResourceDef(
    token="aws:ec2/subnet:Subnet",
    inputs=frozenset({"availabilityZone", "cidrBlock", "mapPublicIpOnLaunch", "region", "tags", "vpcId"}),
    required=frozenset({"vpcId"}),
    outputs=frozenset({"arn", "ownerId", "region", "tagsAll"}),
    force_new=frozenset({"availabilityZone", "cidrBlock", "region", "vpcId"}),
    defaults={"mapPublicIpOnLaunch": False},
    create=_create_subnet,
    read=_read_subnet,
    update=_update_subnet,
    delete=lambda call, id, state: making.unless_absent(
        lambda: making.client(call, "ec2", state).delete_subnet(SubnetId=id)
    ),
)

# --- internet gateway ------------------------------------------------------------------------------------


def _create_gateway(call: Call[Aws], inputs: Props) -> Made:
    ec2 = making.client(call, "ec2", inputs)
    created = ec2.create_internet_gateway(**making.tag_specification(call, "internet-gateway", inputs))
    id = created["InternetGateway"]["InternetGatewayId"]
    outputs = {
        "arn": making.ec2_arn(call, inputs, "internet-gateway", id),
        "ownerId": making.ACCOUNT,
        "region": making.region(call, inputs),
        "tagsAll": call.session.tags(inputs),
    }
    return making.made(id, outputs, lambda: _attach(call, id, inputs))


def _attach(call: Call[Aws], id: str, inputs: Props) -> None:
    if inputs.get("vpcId") and inputs["vpcId"] not in _attached(call, id, inputs):
        making.client(call, "ec2", inputs).attach_internet_gateway(InternetGatewayId=id, VpcId=inputs["vpcId"])


def _attached(call: Call[Aws], id: str, props: Props) -> list[str]:
    found = making.client(call, "ec2", props).describe_internet_gateways(InternetGatewayIds=[id])["InternetGateways"]
    return [item["VpcId"] for item in found[0]["Attachments"]]


def _read_gateway(call: Call[Aws], id: str, state: Props) -> Props | None:
    ec2 = making.client(call, "ec2", state)
    found = making.first(
        making.unless_absent(lambda: ec2.describe_internet_gateways(InternetGatewayIds=[id])["InternetGateways"])
    )
    if not found:
        return None
    vpcs = [item["VpcId"] for item in found["Attachments"]]
    tags = making.live_tags(call, state, making.from_tags(found.get("Tags", [])))
    return {**state, "vpcId": vpcs[0] if vpcs else "", **tags}


def _update_gateway(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    for vpc in _attached(call, id, inputs):
        if vpc != inputs.get("vpcId"):
            making.client(call, "ec2", inputs).detach_internet_gateway(InternetGatewayId=id, VpcId=vpc)
    _attach(call, id, inputs)
    return making.retag(call, id, state, inputs)


def _delete_gateway(call: Call[Aws], id: str, state: Props) -> None:
    ec2 = making.client(call, "ec2", state)
    for vpc in making.unless_absent(lambda: _attached(call, id, state)) or []:
        ec2.detach_internet_gateway(InternetGatewayId=id, VpcId=vpc)
    making.unless_absent(lambda: ec2.delete_internet_gateway(InternetGatewayId=id))


GATEWAY = ResourceDef(
    token="aws:ec2/internetGateway:InternetGateway",
    inputs=frozenset({"region", "tags", "vpcId"}),
    outputs=frozenset({"arn", "ownerId", "region", "tagsAll"}),
    force_new=frozenset({"region"}),
    create=_create_gateway,
    read=_read_gateway,
    update=_update_gateway,
    delete=_delete_gateway,
)

# --- address and NAT -------------------------------------------------------------------------------------


def _create_address(call: Call[Aws], inputs: Props) -> Made:
    tags = making.tag_specification(call, "elastic-ip", inputs)
    answer = making.client(call, "ec2", inputs).allocate_address(Domain=inputs.get("domain", "vpc"), **tags)
    id = answer["AllocationId"]
    outputs = {
        "allocationId": id,
        "arn": making.ec2_arn(call, inputs, "elastic-ip", id),
        "publicIp": answer["PublicIp"],
        "region": making.region(call, inputs),
        "tagsAll": call.session.tags(inputs),
    }
    return Made(id, outputs)


def _read_address(call: Call[Aws], id: str, state: Props) -> Props | None:
    ec2 = making.client(call, "ec2", state)
    found = making.first(making.unless_absent(lambda: ec2.describe_addresses(AllocationIds=[id])["Addresses"]))
    if not found:
        return None
    return {
        **state,
        "domain": found["Domain"],
        **making.live_tags(call, state, making.from_tags(found.get("Tags", []))),
    }


ADDRESS = ResourceDef(
    token="aws:ec2/eip:Eip",
    inputs=frozenset({"domain", "region", "tags"}),
    outputs=frozenset({"allocationId", "arn", "publicIp", "region", "tagsAll"}),
    force_new=frozenset({"domain", "region"}),
    create=_create_address,
    read=_read_address,
    update=making.retag,
    delete=lambda call, id, state: making.unless_absent(
        lambda: making.client(call, "ec2", state).release_address(AllocationId=id)
    ),
)


def _create_nat(call: Call[Aws], inputs: Props) -> Made:
    wanted = making.given(inputs, "subnetId", "allocationId", "connectivityType")
    answer = making.client(call, "ec2", inputs).create_nat_gateway(
        **wanted, **making.tag_specification(call, "natgateway", inputs)
    )
    id = answer["NatGateway"]["NatGatewayId"]
    outputs = {"arn": making.ec2_arn(call, inputs, "natgateway", id), "region": making.region(call, inputs)}
    return Made(id, {**outputs, "tagsAll": call.session.tags(inputs)})


def _read_nat(call: Call[Aws], id: str, state: Props) -> Props | None:
    ec2 = making.client(call, "ec2", state)
    found = making.first(making.unless_absent(lambda: ec2.describe_nat_gateways(NatGatewayIds=[id])["NatGateways"]))
    if not found or found["State"] in ("deleted", "deleting"):
        return None
    live = {"subnetId": found["SubnetId"], "allocationId": found["NatGatewayAddresses"][0]["AllocationId"]}
    return {**state, **live, **making.live_tags(call, state, making.from_tags(found.get("Tags", [])))}


NAT = ResourceDef(
    token="aws:ec2/natGateway:NatGateway",
    inputs=frozenset({"allocationId", "connectivityType", "region", "subnetId", "tags"}),
    required=frozenset({"subnetId"}),
    outputs=frozenset({"arn", "region", "tagsAll"}),
    force_new=frozenset({"allocationId", "connectivityType", "region", "subnetId"}),
    create=_create_nat,
    read=_read_nat,
    update=making.retag,
    delete=lambda call, id, state: making.unless_absent(
        lambda: making.client(call, "ec2", state).delete_nat_gateway(NatGatewayId=id)
    ),
)

# --- endpoints -------------------------------------------------------------------------------------------

_ENDPOINT_LISTS = {"routeTableIds": "RouteTableIds", "subnetIds": "SubnetIds", "securityGroupIds": "SecurityGroupIds"}


def _create_endpoint(call: Call[Aws], inputs: Props) -> Made:
    wanted = making.given(inputs, "vpcId", "serviceName", "vpcEndpointType", "privateDnsEnabled", *_ENDPOINT_LISTS)
    answer = making.client(call, "ec2", inputs).create_vpc_endpoint(
        **wanted, **making.tag_specification(call, "vpc-endpoint", inputs)
    )
    id = answer["VpcEndpoint"]["VpcEndpointId"]
    outputs = {
        "arn": making.ec2_arn(call, inputs, "vpc-endpoint", id),
        "state": "available",
        "region": making.region(call, inputs),
    }
    return Made(id, {**outputs, "tagsAll": call.session.tags(inputs)})


def _delete_endpoint(call: Call[Aws], id: str, state: Props) -> None:
    """Without its routes: in moto they are the replacement's too, which then could not be deleted for lack of them."""
    ec2 = making.client(call, "ec2", state)
    if tables := state.get("routeTableIds"):
        making.unless_absent(lambda: ec2.modify_vpc_endpoint(VpcEndpointId=id, RemoveRouteTableIds=tables))
    making.unless_absent(lambda: ec2.delete_vpc_endpoints(VpcEndpointIds=[id]))


def _read_endpoint(call: Call[Aws], id: str, state: Props) -> Props | None:
    ec2 = making.client(call, "ec2", state)
    found = making.first(making.unless_absent(lambda: ec2.describe_vpc_endpoints(VpcEndpointIds=[id])["VpcEndpoints"]))
    if not found or found.get("State") in ("deleted", "deleting"):
        return None
    live: Props = {"vpcId": found["VpcId"], "serviceName": found["ServiceName"]}
    for key, name in _ENDPOINT_LISTS.items():
        if key in state and key != "securityGroupIds":  # moto returns groups under another name or not at all
            live[key] = _in_order_of(state[key], found.get(name, []))
    return {**state, **live, **making.live_tags(call, state, making.from_tags(found.get("Tags", [])))}


def _in_order_of(known: list[str], found: list[str]) -> list[str]:
    """A set of ids in the order of the state's list, so that order alone is not drift."""
    return [item for item in known if item in found] + sorted(set(found) - set(known))


ENDPOINT = ResourceDef(
    token="aws:ec2/vpcEndpoint:VpcEndpoint",
    inputs=frozenset(
        {"privateDnsEnabled", "region", "serviceName", "tags", "vpcEndpointType", "vpcId", *_ENDPOINT_LISTS}
    ),
    required=frozenset({"vpcId"}),
    outputs=frozenset({"arn", "region", "state", "tagsAll"}),
    # AWS modifies tables, subnets and groups in place; moto has no ModifyVpcEndpoint, so the stand-in replaces.
    force_new=frozenset({"privateDnsEnabled", "region", "serviceName", "vpcEndpointType", "vpcId", *_ENDPOINT_LISTS}),
    create=_create_endpoint,
    read=_read_endpoint,
    update=making.retag,
    delete=_delete_endpoint,
)

# --- lookups ---------------------------------------------------------------------------------------------


def _filters(args: Props) -> list[Props]:
    return [{"Name": item["name"], "Values": item["values"]} for item in args.get("filters") or []]


def _get_subnets(session: Aws, args: Props) -> Props:
    found = session.client("ec2", args.get("region")).describe_subnets(Filters=_filters(args))["Subnets"]
    name = args.get("region") or session.region
    return {**args, "id": name, "region": name, "ids": sorted(item["SubnetId"] for item in found)}


def _get_subnet(session: Aws, args: Props) -> Props:
    found = session.client("ec2", args.get("region")).describe_subnets(SubnetIds=[args["id"]])["Subnets"][0]
    return {
        **args,
        "region": args.get("region") or session.region,
        "vpcId": found["VpcId"],
        "availabilityZone": found["AvailabilityZone"],
        "availableIpAddressCount": found["AvailableIpAddressCount"],
        "cidrBlock": found["CidrBlock"],
    }


def _get_vpc(session: Aws, args: Props) -> Props:
    ec2, id = session.client("ec2", args.get("region")), args["id"]
    found = ec2.describe_vpcs(VpcIds=[id])["Vpcs"][0]
    dns = {key: ec2.describe_vpc_attribute(VpcId=id, Attribute=key)[name]["Value"] for key, name in _DNS.items()}
    return {**args, **dns, "region": args.get("region") or session.region, "cidrBlock": found["CidrBlock"]}


def _get_offerings(session: Aws, args: Props) -> Props:
    ec2 = session.client("ec2", args.get("region"))
    pages = ec2.get_paginator("describe_instance_type_offerings").paginate(
        LocationType=args.get("locationType", "region"), Filters=_filters(args)
    )
    found = [item for page in pages for item in page["InstanceTypeOfferings"]]
    name = args.get("region") or session.region
    return {
        **args,
        "id": name,
        "region": name,
        "instanceTypes": [item["InstanceType"] for item in found],
        "locations": [item["Location"] for item in found],
        "locationTypes": [item["LocationType"] for item in found],
    }


def _get_eips(session: Aws, args: Props) -> Props:
    tags = [{"Name": f"tag:{name}", "Values": [text]} for name, text in (args.get("tags") or {}).items()]
    found = session.client("ec2", args.get("region")).describe_addresses(Filters=[*_filters(args), *tags])["Addresses"]
    where = args.get("region") or session.region
    ids, addresses = [item["AllocationId"] for item in found], [item["PublicIp"] for item in found]
    return {**args, "id": where, "region": where, "allocationIds": ids, "publicIps": addresses}


RESOURCES = (VPC, DEFAULT_GROUP, SUBNET, GATEWAY, ADDRESS, NAT, ENDPOINT)
INVOKES = (
    InvokeDef("aws:ec2/getSubnets:getSubnets", _get_subnets),
    InvokeDef("aws:ec2/getSubnet:getSubnet", _get_subnet),
    InvokeDef("aws:ec2/getVpc:getVpc", _get_vpc),
    InvokeDef("aws:ec2/getEips:getEips", _get_eips),
    InvokeDef("aws:ec2/getInstanceTypeOfferings:getInstanceTypeOfferings", _get_offerings),
)
