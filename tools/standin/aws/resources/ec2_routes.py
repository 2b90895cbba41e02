"""Route tables, routes, associations, security groups and their rules."""

from __future__ import annotations

from typing import Any

from modelfleet.infra.provider import Autoname, Call, Made, Props, ResourceDef
from tools.standin.aws import making
from tools.standin.aws.session import Aws

# --- route table -----------------------------------------------------------------------------------------


def _create_table(call: Call[Aws], inputs: Props) -> Made:
    tags = making.tag_specification(call, "route-table", inputs)
    answer = making.client(call, "ec2", inputs).create_route_table(VpcId=inputs["vpcId"], **tags)
    id = answer["RouteTable"]["RouteTableId"]
    outputs = {
        "arn": making.ec2_arn(call, inputs, "route-table", id),
        "ownerId": making.ACCOUNT,
        "region": making.region(call, inputs),
        "tagsAll": call.session.tags(inputs),
    }
    return Made(id, outputs)


def _find_table(call: Call[Aws], id: str, props: Props) -> Any:
    ec2 = making.client(call, "ec2", props)
    found = making.unless_absent(lambda: ec2.describe_route_tables(RouteTableIds=[id])["RouteTables"])
    return found[0] if found else None


def _read_table(call: Call[Aws], id: str, state: Props) -> Props | None:
    found = _find_table(call, id, state)
    if not found:
        return None
    return {**state, "vpcId": found["VpcId"], **making.live_tags(call, state, making.from_tags(found.get("Tags", [])))}


TABLE = ResourceDef(
    token="aws:ec2/routeTable:RouteTable",
    inputs=frozenset({"region", "tags", "vpcId"}),
    required=frozenset({"vpcId"}),
    outputs=frozenset({"arn", "ownerId", "region", "tagsAll"}),
    force_new=frozenset({"region", "vpcId"}),
    create=_create_table,
    read=_read_table,
    update=making.retag,
    delete=lambda call, id, state: making.unless_absent(
        lambda: making.client(call, "ec2", state).delete_route_table(RouteTableId=id)
    ),
)

# --- route -----------------------------------------------------------------------------------------------

_TARGETS = ("gatewayId", "natGatewayId")


def _route(inputs: Props) -> Props:
    return making.given(inputs, "routeTableId", "destinationCidrBlock", *_TARGETS)


def _create_route(call: Call[Aws], inputs: Props) -> Made:
    making.client(call, "ec2", inputs).create_route(**_route(inputs))
    id = f"r-{inputs['routeTableId']}-{inputs['destinationCidrBlock']}"
    return Made(id, {"origin": "CreateRoute", "state": "active", "region": making.region(call, inputs)})


def _read_route(call: Call[Aws], id: str, state: Props) -> Props | None:
    table = _find_table(call, state["routeTableId"], state)
    for route in table["Routes"] if table else ():
        if route.get("DestinationCidrBlock") == state["destinationCidrBlock"]:
            live = {"gatewayId": route.get("GatewayId"), "natGatewayId": route.get("NatGatewayId")}
            return {**state, **{key: value for key, value in live.items() if key in state or value}}
    return None


def _update_route(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    making.client(call, "ec2", inputs).replace_route(**_route(inputs))
    return {}


def _delete_route(call: Call[Aws], id: str, state: Props) -> None:
    wanted = making.given(state, "routeTableId", "destinationCidrBlock")
    making.unless_absent(lambda: making.client(call, "ec2", state).delete_route(**wanted))


ROUTE = ResourceDef(
    token="aws:ec2/route:Route",
    inputs=frozenset({"destinationCidrBlock", "region", "routeTableId", *_TARGETS}),
    required=frozenset({"destinationCidrBlock", "routeTableId"}),
    outputs=frozenset({"origin", "region", "state"}),
    force_new=frozenset({"destinationCidrBlock", "region", "routeTableId"}),
    create=_create_route,
    read=_read_route,
    update=_update_route,
    delete=_delete_route,
)

# --- association -----------------------------------------------------------------------------------------


def _associate(call: Call[Aws], inputs: Props) -> Made:
    wanted = making.given(inputs, "subnetId", "routeTableId")
    answer = making.client(call, "ec2", inputs).associate_route_table(**wanted)
    return Made(answer["AssociationId"], {"region": making.region(call, inputs)})


def _read_association(call: Call[Aws], id: str, state: Props) -> Props | None:
    table = _find_table(call, state["routeTableId"], state)
    for item in table["Associations"] if table else ():
        if item.get("RouteTableAssociationId") == id:
            return {**state, "subnetId": item.get("SubnetId"), "routeTableId": item["RouteTableId"]}
    return None


ASSOCIATION = ResourceDef(
    token="aws:ec2/routeTableAssociation:RouteTableAssociation",
    inputs=frozenset({"region", "routeTableId", "subnetId"}),
    required=frozenset({"routeTableId", "subnetId"}),
    outputs=frozenset({"region"}),
    # AWS can move an association to another table; the stand-in makes a new one.
    force_new=frozenset({"region", "routeTableId", "subnetId"}),
    delete_before_replace=True,
    create=_associate,
    read=_read_association,
    delete=lambda call, id, state: making.unless_absent(
        lambda: making.client(call, "ec2", state).disassociate_route_table(AssociationId=id)
    ),
)

# --- security group --------------------------------------------------------------------------------------


def _create_group(call: Call[Aws], inputs: Props) -> Made:
    ec2 = making.client(call, "ec2", inputs)
    answer = ec2.create_security_group(
        GroupName=inputs["name"],
        Description=inputs.get("description", "Managed by Pulumi"),
        VpcId=inputs["vpcId"],
        **making.tag_specification(call, "security-group", inputs),
    )
    id = answer["GroupId"]
    arn = making.ec2_arn(call, inputs, "security-group", id)
    outputs = {"arn": arn, "region": making.region(call, inputs), "tagsAll": call.session.tags(inputs)}
    return making.made(id, outputs, lambda: _close_outwards(call, id, inputs))


def _close_outwards(call: Call[Aws], id: str, inputs: Props) -> None:
    """Removes the outbound rule that AWS adds to every new group, as the real plugin does; the program sets its own."""
    ec2 = making.client(call, "ec2", inputs)
    opened = ec2.describe_security_groups(GroupIds=[id])["SecurityGroups"][0]["IpPermissionsEgress"]
    everything = [rule for rule in opened if rule["IpProtocol"] == "-1"]
    if everything and id not in _with_own_rules(ec2, id):
        ec2.revoke_security_group_egress(GroupId=id, IpPermissions=everything)


def _with_own_rules(ec2: Any, id: str) -> set[str]:
    """The group's id if one of the program's own rules (they are tagged) opens it outwards."""
    rules = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [id]}])["SecurityGroupRules"]
    return {id} if any(rule["IsEgress"] and rule.get("Tags") for rule in rules) else set()


def _update_group(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    _close_outwards(call, id, inputs)
    return making.retag(call, id, state, inputs)


def _read_group(call: Call[Aws], id: str, state: Props) -> Props | None:
    ec2 = making.client(call, "ec2", state)
    found = making.unless_absent(lambda: ec2.describe_security_groups(GroupIds=[id])["SecurityGroups"])
    if not found:
        return None
    live = {"name": found[0]["GroupName"], "description": found[0]["Description"], "vpcId": found[0]["VpcId"]}
    return {**state, **live, **making.live_tags(call, state, making.from_tags(found[0].get("Tags", [])))}


GROUP = ResourceDef(
    token="aws:ec2/securityGroup:SecurityGroup",
    inputs=frozenset({"description", "name", "region", "tags", "vpcId"}),
    required=frozenset({"vpcId"}),
    outputs=frozenset({"arn", "region", "tagsAll"}),
    force_new=frozenset({"description", "name", "region", "vpcId"}),
    defaults={"description": "Managed by Pulumi"},
    autoname=Autoname("name", max_length=255),
    create=_create_group,
    read=_read_group,
    update=_update_group,
    delete=lambda call, id, state: making.unless_absent(
        lambda: making.client(call, "ec2", state).delete_security_group(GroupId=id)
    ),
)


def _rule(direction: str) -> ResourceDef[Aws]:
    """`SecurityGroupIngressRule` and `SecurityGroupEgressRule` differ only in the call."""
    kind = f"SecurityGroup{direction.capitalize()}Rule"

    def create(call: Call[Aws], inputs: Props) -> Made:
        permission: Props = making.given(inputs, "ipProtocol", "fromPort", "toPort")
        text = {"Description": inputs["description"]} if inputs.get("description") else {}
        if inputs.get("cidrIpv4"):
            permission["IpRanges"] = [{"CidrIp": inputs["cidrIpv4"], **text}]
        else:
            permission["UserIdGroupPairs"] = [{"GroupId": inputs["referencedSecurityGroupId"], **text}]
        authorize = getattr(making.client(call, "ec2", inputs), f"authorize_security_group_{direction}")
        tags = making.tag_specification(call, "security-group-rule", inputs)
        answer = authorize(GroupId=inputs["securityGroupId"], IpPermissions=[permission], **tags)
        id = answer["SecurityGroupRules"][0]["SecurityGroupRuleId"]
        arn = making.ec2_arn(call, inputs, "security-group-rule", id)
        outputs = {"arn": arn, "securityGroupRuleId": id, "region": making.region(call, inputs)}
        return Made(id, {**outputs, "tagsAll": call.session.tags(inputs)})

    def read(call: Call[Aws], id: str, state: Props) -> Props | None:
        ec2 = making.client(call, "ec2", state)
        found = making.unless_absent(
            lambda: ec2.describe_security_group_rules(
                Filters=[{"Name": "group-id", "Values": [state["securityGroupId"]]}]
            )["SecurityGroupRules"]
        )
        for rule in found or ():
            if rule["SecurityGroupRuleId"] == id:
                live = {"ipProtocol": rule["IpProtocol"], "cidrIpv4": rule.get("CidrIpv4")}
                return {**state, **{key: value for key, value in live.items() if value is not None}}
        return None

    def delete(call: Call[Aws], id: str, state: Props) -> None:
        revoke = getattr(making.client(call, "ec2", state), f"revoke_security_group_{direction}")
        making.unless_absent(lambda: revoke(GroupId=state["securityGroupId"], SecurityGroupRuleIds=[id]))

    place = ("cidrIpv4", "fromPort", "ipProtocol", "referencedSecurityGroupId", "securityGroupId", "toPort")
    return ResourceDef(
        token=f"aws:vpc/{kind[0].lower()}{kind[1:]}:{kind}",
        inputs=frozenset({"description", "region", "tags", *place}),
        required=frozenset({"ipProtocol", "securityGroupId"}),
        outputs=frozenset({"arn", "region", "securityGroupRuleId", "tagsAll"}),
        # AWS changes everything but the group in place; moto takes any change without looking at it.
        force_new=frozenset({"description", "region", *place}),
        create=create,
        read=read,
        update=making.retag,
        delete=delete,
    )


RESOURCES = (TABLE, ROUTE, ASSOCIATION, GROUP, _rule("ingress"), _rule("egress"))
