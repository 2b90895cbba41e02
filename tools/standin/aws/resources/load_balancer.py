"""Application Load Balancers with their target groups and listeners."""

from __future__ import annotations

from typing import Any

from modelfleet.infra.provider import UNKNOWN, Autoname, Call, Made, Props, Refused, ResourceDef
from tools.standin.aws.making import as_tags, client, first, from_tags, live_tags, made, region, unless_absent
from tools.standin.aws.session import Aws

#: https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_LoadBalancerAttribute.html and
#: https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_TargetGroupAttribute.html
_BALANCER_ATTRIBUTES = {
    "idleTimeout": "idle_timeout.timeout_seconds",
    "dropInvalidHeaderFields": "routing.http.drop_invalid_header_fields.enabled",
    "enableDeletionProtection": "deletion_protection.enabled",
}
_TARGET_ATTRIBUTES = {
    "deregistrationDelay": "deregistration_delay.timeout_seconds",
    "loadBalancingAlgorithmType": "load_balancing.algorithm.type",
}
_RANGES = {"idleTimeout": (1, 4000), "deregistrationDelay": (0, 3600)}
_LONGEST_NAME = 32


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _attributes(inputs: Props, names: Props) -> list[dict[str, str]]:
    return [{"Key": key, "Value": _text(inputs[name])} for name, key in names.items() if inputs.get(name) is not None]


def _in_range(inputs: Props) -> list[tuple[str, str]]:
    found = []
    for name, (least, most) in _RANGES.items():
        value = inputs.get(name)
        if value is not None and value != UNKNOWN and not least <= int(value) <= most:
            found.append((name, f"must be from {least} to {most}, found {value}"))
    own = inputs.get("name")
    if own and own != UNKNOWN and len(own) > _LONGEST_NAME:
        found.append(("name", f"must have at most {_LONGEST_NAME} characters, found '{own}'"))
    return found


def _retag(elb: Any, arn: str, call: Call[Aws], state: Props, inputs: Props) -> Props:
    wanted, had = call.session.tags(inputs), state.get("tagsAll") or {}
    if gone := sorted({*had} - {*wanted}):
        elb.remove_tags(ResourceArns=[arn], TagKeys=gone)
    if wanted and wanted != had:
        elb.add_tags(ResourceArns=[arn], Tags=as_tags(wanted))
    return {"tagsAll": wanted}


def _tags(call: Call[Aws], inputs: Props) -> Props:
    tags = call.session.tags(inputs)
    return {"Tags": as_tags(tags)} if tags else {}


def _live_tags(elb: Any, call: Call[Aws], id: str, state: Props) -> Props:
    found = elb.describe_tags(ResourceArns=[id])["TagDescriptions"]
    return live_tags(call, state, from_tags(found[0]["Tags"]) if found else {})


# --- load balancer ---------------------------------------------------------------------------------------


def _refuse_bad_subnets(call: Call[Aws], inputs: Props) -> None:
    """Two zones, and for the internet an internet gateway.

    https://docs.aws.amazon.com/elasticloadbalancing/latest/application/application-load-balancers.html#subnets-load-balancer
    """
    ec2 = client(call, "ec2", inputs)
    subnets = ec2.describe_subnets(SubnetIds=inputs["subnets"])["Subnets"]
    if len({subnet["AvailabilityZone"] for subnet in subnets}) < 2:
        raise Refused(
            "CreateLoadBalancer: ValidationError: At least two subnets in two Availability Zones are required"
        )
    vpc = [{"Name": "attachment.vpc-id", "Values": [subnets[0]["VpcId"]]}]
    if not inputs.get("internal") and not ec2.describe_internet_gateways(Filters=vpc)["InternetGateways"]:
        raise Refused(f"CreateLoadBalancer: InvalidSubnet: VPC {subnets[0]['VpcId']} has no internet gateway")


def _create_balancer(call: Call[Aws], inputs: Props) -> Made:
    if inputs.get("loadBalancerType", "application") != "application":
        raise Refused(f"the stand-in makes application load balancers only, found {inputs['loadBalancerType']}")
    _refuse_bad_subnets(call, inputs)
    elb = client(call, "elbv2", inputs)
    found = elb.create_load_balancer(
        Name=inputs["name"],
        Subnets=inputs["subnets"],
        SecurityGroups=inputs.get("securityGroups", []),
        Scheme="internal" if inputs.get("internal") else "internet-facing",
        Type="application",
        **_tags(call, inputs),
    )["LoadBalancers"][0]
    arn = found["LoadBalancerArn"]
    outputs = {
        "arn": arn,
        "dnsName": found["DNSName"],
        "zoneId": found["CanonicalHostedZoneId"],
        "vpcId": found["VpcId"],
        "region": region(call, inputs),
        "tagsAll": call.session.tags(inputs),
    }
    attributes = _attributes(inputs, _BALANCER_ATTRIBUTES)
    return made(arn, outputs, lambda: elb.modify_load_balancer_attributes(LoadBalancerArn=arn, Attributes=attributes))


def _read_balancer(call: Call[Aws], id: str, state: Props) -> Props | None:
    elb = client(call, "elbv2", state)
    found = first(unless_absent(lambda: elb.describe_load_balancers(LoadBalancerArns=[id])["LoadBalancers"]))
    if not found:
        return None
    live = {"name": found["LoadBalancerName"], "internal": found["Scheme"] == "internal"}
    return {**state, **live, **_live_tags(elb, call, id, state)}


def _update_balancer(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    elb = client(call, "elbv2", inputs)
    if inputs.get("securityGroups") != state.get("securityGroups"):
        elb.set_security_groups(LoadBalancerArn=id, SecurityGroups=inputs["securityGroups"])
    if inputs["subnets"] != state.get("subnets"):
        elb.set_subnets(LoadBalancerArn=id, Subnets=inputs["subnets"])
    elb.modify_load_balancer_attributes(LoadBalancerArn=id, Attributes=_attributes(inputs, _BALANCER_ATTRIBUTES))
    return _retag(elb, id, call, state, inputs)


def _delete_balancer(call: Call[Aws], id: str, state: Props) -> None:
    elb = client(call, "elbv2", state)
    if state.get("enableDeletionProtection"):
        raise Refused(f"DeleteLoadBalancer: OperationNotPermitted: Load balancer '{id}' has deletion protection on")
    elb.delete_load_balancer(LoadBalancerArn=id)


BALANCER = ResourceDef(
    token="aws:lb/loadBalancer:LoadBalancer",
    inputs=frozenset(
        {"internal", "loadBalancerType", "name", "region", "securityGroups", "subnets", "tags", *_BALANCER_ATTRIBUTES}
    ),
    required=frozenset({"subnets"}),
    outputs=frozenset({"arn", "dnsName", "region", "tagsAll", "vpcId", "zoneId"}),
    force_new=frozenset({"internal", "loadBalancerType", "name", "region"}),
    autoname=Autoname("name", max_length=_LONGEST_NAME),
    check=_in_range,
    create=_create_balancer,
    read=_read_balancer,
    update=_update_balancer,
    delete=_delete_balancer,
)

# --- target group ----------------------------------------------------------------------------------------


def _health_check(inputs: Props) -> Props:
    check = inputs.get("healthCheck") or {}
    names = {
        "protocol": "HealthCheckProtocol",
        "path": "HealthCheckPath",
        "interval": "HealthCheckIntervalSeconds",
        "timeout": "HealthCheckTimeoutSeconds",
        "healthyThreshold": "HealthyThresholdCount",
        "unhealthyThreshold": "UnhealthyThresholdCount",
    }
    whole = {"interval", "timeout", "healthyThreshold", "unhealthyThreshold"}
    found = {
        key: int(check[name]) if name in whole else check[name]
        for name, key in names.items()
        if check.get(name) is not None
    }
    return {**found, **({"Matcher": {"HttpCode": check["matcher"]}} if check.get("matcher") else {})}


def _create_targets(call: Call[Aws], inputs: Props) -> Made:
    elb = client(call, "elbv2", inputs)
    found = elb.create_target_group(
        Name=inputs["name"],
        Protocol=inputs["protocol"],
        Port=int(inputs["port"]),
        VpcId=inputs["vpcId"],
        TargetType=inputs.get("targetType", "instance"),
        **_health_check(inputs),
        **_tags(call, inputs),
    )["TargetGroups"][0]
    arn = found["TargetGroupArn"]
    outputs = {"arn": arn, "region": region(call, inputs), "tagsAll": call.session.tags(inputs)}
    attributes = _attributes(inputs, _TARGET_ATTRIBUTES)
    return made(arn, outputs, lambda: elb.modify_target_group_attributes(TargetGroupArn=arn, Attributes=attributes))


def _read_targets(call: Call[Aws], id: str, state: Props) -> Props | None:
    elb = client(call, "elbv2", state)
    found = first(unless_absent(lambda: elb.describe_target_groups(TargetGroupArns=[id])["TargetGroups"]))
    if not found:
        return None
    live = {"name": found["TargetGroupName"], "protocol": found["Protocol"], "port": found["Port"]}
    return {**state, **live, **_live_tags(elb, call, id, state)}


def _update_targets(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    elb = client(call, "elbv2", inputs)
    if inputs.get("healthCheck") != state.get("healthCheck"):
        elb.modify_target_group(TargetGroupArn=id, **_health_check(inputs))
    elb.modify_target_group_attributes(TargetGroupArn=id, Attributes=_attributes(inputs, _TARGET_ATTRIBUTES))
    return _retag(elb, id, call, state, inputs)


TARGETS = ResourceDef(
    token="aws:lb/targetGroup:TargetGroup",
    inputs=frozenset(
        {
            "healthCheck",
            "name",
            "port",
            "protocol",
            "region",
            "tags",
            "targetType",
            "vpcId",
            *_TARGET_ATTRIBUTES,
        }
    ),
    outputs=frozenset({"arn", "region", "tagsAll"}),
    force_new=frozenset({"name", "port", "protocol", "region", "targetType", "vpcId"}),
    autoname=Autoname("name", max_length=_LONGEST_NAME),
    check=_in_range,
    create=_create_targets,
    read=_read_targets,
    update=_update_targets,
    delete=lambda call, id, state: unless_absent(
        lambda: client(call, "elbv2", state).delete_target_group(TargetGroupArn=id)
    ),
)

# --- listener --------------------------------------------------------------------------------------------


def _listener(inputs: Props) -> Props:
    certificate, policy = inputs.get("certificateArn"), inputs.get("sslPolicy")
    return {
        "Protocol": inputs.get("protocol", "HTTP"),
        "Port": int(inputs["port"]),
        "DefaultActions": [
            {"Type": action["type"], "TargetGroupArn": action["targetGroupArn"]} for action in inputs["defaultActions"]
        ],
        **({"Certificates": [{"CertificateArn": certificate}]} if certificate else {}),
        **({"SslPolicy": policy} if policy else {}),
    }


def _refuse_unissued(call: Call[Aws], inputs: Props) -> None:
    """A listener takes only a certificate that ACM has issued.

    https://docs.aws.amazon.com/elasticloadbalancing/latest/application/https-listener-certificates.html
    """
    arn = inputs.get("certificateArn")
    if inputs.get("protocol") == "HTTPS" and not arn:
        raise Refused("CreateListener: CertificateNotFound: HTTPS listeners need a certificate")
    if (
        arn
        and client(call, "acm", inputs).describe_certificate(CertificateArn=arn)["Certificate"]["Status"] != "ISSUED"
    ):
        raise Refused(f"CreateListener: UnsupportedCertificate: The certificate '{arn}' must be issued")


def _create_listener(call: Call[Aws], inputs: Props) -> Made:
    _refuse_unissued(call, inputs)
    answer = client(call, "elbv2", inputs).create_listener(
        LoadBalancerArn=inputs["loadBalancerArn"], **_listener(inputs), **_tags(call, inputs)
    )
    arn = answer["Listeners"][0]["ListenerArn"]
    # As the official plugin does after each create (terraform-provider-aws internal/service/elbv2/listener.go).
    client(call, "elbv2", inputs).modify_listener_attributes(
        ListenerArn=arn, Attributes=[{"Key": "routing.http.response.server.enabled", "Value": "true"}]
    )
    return Made(arn, {"arn": arn, "region": region(call, inputs), "tagsAll": call.session.tags(inputs)})


def _read_listener(call: Call[Aws], id: str, state: Props) -> Props | None:
    elb = client(call, "elbv2", state)
    found = first(unless_absent(lambda: elb.describe_listeners(ListenerArns=[id])["Listeners"]))
    if not found:
        return None
    return {**state, "port": found["Port"], "protocol": found["Protocol"], **_live_tags(elb, call, id, state)}


def _update_listener(call: Call[Aws], id: str, state: Props, inputs: Props) -> Props:
    _refuse_unissued(call, inputs)
    elb = client(call, "elbv2", inputs)
    elb.modify_listener(ListenerArn=id, **_listener(inputs))
    return _retag(elb, id, call, state, inputs)


LISTENER = ResourceDef(
    token="aws:lb/listener:Listener",
    inputs=frozenset(
        {"certificateArn", "defaultActions", "loadBalancerArn", "port", "protocol", "region", "sslPolicy", "tags"}
    ),
    required=frozenset({"defaultActions", "loadBalancerArn"}),
    outputs=frozenset({"arn", "region", "tagsAll"}),
    force_new=frozenset({"loadBalancerArn", "region"}),
    create=_create_listener,
    read=_read_listener,
    update=_update_listener,
    delete=lambda call, id, state: unless_absent(lambda: client(call, "elbv2", state).delete_listener(ListenerArn=id)),
)

# --- web ACL ---------------------------------------------------------------------------------------------


def _associate(call: Call[Aws], inputs: Props) -> Made:
    wall, balancer = inputs["webAclArn"], inputs["resourceArn"]
    client(call, "wafv2", inputs).associate_web_acl(WebACLArn=wall, ResourceArn=balancer)
    return Made(f"{wall},{balancer}", {"region": region(call, inputs)})


def _read_association(call: Call[Aws], id: str, state: Props) -> Props | None:
    found = client(call, "wafv2", state).get_web_acl_for_resource(ResourceArn=state["resourceArn"])
    wall = found.get("WebACL")
    return {**state, "webAclArn": wall["ARN"]} if wall else None


ASSOCIATION = ResourceDef(
    # terraform-provider-aws internal/service/wafv2/web_acl_association.go
    token="aws:wafv2/webAclAssociation:WebAclAssociation",
    inputs=frozenset({"region", "resourceArn", "webAclArn"}),
    required=frozenset({"resourceArn", "webAclArn"}),
    outputs=frozenset({"region"}),
    force_new=frozenset({"region", "resourceArn", "webAclArn"}),
    create=_associate,
    read=_read_association,
    delete=lambda call, id, state: unless_absent(
        lambda: client(call, "wafv2", state).disassociate_web_acl(ResourceArn=state["resourceArn"])
    ),
)

RESOURCES = (BALANCER, TARGETS, LISTENER, ASSOCIATION)
