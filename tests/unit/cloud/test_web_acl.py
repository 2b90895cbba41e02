"""A web ACL on the front door: what the operator's policy allows is what the calls need, on both sides."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelfleet.infra.aws.operator import _firewall
from tests.unit.cloud.test_judge import refused, role_with
from tools.cloud.server import Listening

LOOKS = {"SampledRequestsEnabled": False, "CloudWatchMetricsEnabled": False, "MetricName": "wall"}


class Firewall:
    """A web ACL and a load balancer."""

    def __init__(self, cloud: Listening) -> None:
        ec2, waf = cloud.client("ec2"), cloud.client("wafv2")
        self.cloud, self.region = cloud, ec2.meta.region_name
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        zones = [one["ZoneName"] for one in ec2.describe_availability_zones()["AvailabilityZones"][:2]]
        subnets = [
            ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
            for n, zone in enumerate(zones)
        ]
        balancer = cloud.client("elbv2").create_load_balancer(Name="door", Subnets=subnets, Scheme="internal")
        self.balancer = balancer["LoadBalancers"][0]["LoadBalancerArn"]
        made = waf.create_web_acl(Name="wall", Scope="REGIONAL", DefaultAction={"Allow": {}}, VisibilityConfig=LOOKS)
        self.web_acl = made["Summary"]["ARN"]

    def client(self, without: str = "") -> Any:
        statements = _firewall(self.region, self.web_acl)
        text = json.dumps(statements).replace(f'"{without}"', '"s3:ListBucket"') if without else json.dumps(statements)
        return self.cloud.client("wafv2", role_with(self.cloud, *json.loads(text)))


@pytest.fixture
def firewall(account: Listening) -> Firewall:
    return Firewall(account)


def test_the_operator_may_put_a_web_acl_before_its_load_balancer_and_take_it_away(firewall: Firewall) -> None:
    waf = firewall.client()
    waf.associate_web_acl(WebACLArn=firewall.web_acl, ResourceArn=firewall.balancer)
    assert waf.get_web_acl_for_resource(ResourceArn=firewall.balancer)["WebACL"]["ARN"] == firewall.web_acl
    waf.disassociate_web_acl(ResourceArn=firewall.balancer)
    assert "WebACL" not in waf.get_web_acl_for_resource(ResourceArn=firewall.balancer)


@pytest.mark.parametrize("action", ["wafv2:AssociateWebACL", "elasticloadbalancing:SetWebACL"])
def test_each_side_asks_for_a_right_of_its_own(firewall: Firewall, action: str) -> None:
    waf = firewall.client(without=action)
    status, _, message = refused(waf.associate_web_acl, WebACLArn=firewall.web_acl, ResourceArn=firewall.balancer)
    assert status in (400, 403) and action in message
