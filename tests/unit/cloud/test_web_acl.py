"""A web ACL on the front door: what the operator's policy allows is what the calls need, on both sides."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from modelfleet.infra.aws.operator import _firewall
from modelfleet.infra.aws.site import Site
from tests.unit.aws.builders import ACCOUNT, REGION
from tests.unit.cloud.test_judge import refused, role_with
from tools.cloud.server import Listening

LOOKS = {"SampledRequestsEnabled": False, "CloudWatchMetricsEnabled": False, "MetricName": "wall"}

SITE = Site(
    stack="test",
    partition="aws",
    tags={},
    account=ACCOUNT,
    region=REGION,
    cluster_name="c",
    namespace="n",
    protect=False,
)


class Firewall:
    """A web ACL and a load balancer."""

    def __init__(self, cloud: Listening) -> None:
        ec2, waf = cloud.client("ec2"), cloud.client("wafv2")
        self.cloud, self._names = cloud, count()
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        zones = [one["ZoneName"] for one in ec2.describe_availability_zones()["AvailabilityZones"][:2]]
        subnets = [
            ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
            for n, zone in enumerate(zones)
        ]
        balancer = cloud.client("elbv2").create_load_balancer(Name="door", Subnets=subnets, Scheme="internal")
        self.balancer = balancer["LoadBalancers"][0]["LoadBalancerArn"]
        self.web_acl, self.another = (
            waf.create_web_acl(Name=name, Scope="REGIONAL", DefaultAction={"Allow": {}}, VisibilityConfig=LOOKS)[
                "Summary"
            ]["ARN"]
            for name in ("wall", "another")
        )

    def client(self, web_acl: str | None, without: str = "") -> Any:
        """The client of an operator whose stack file has this web ACL now."""
        statements = _firewall(SITE, web_acl)
        text = json.dumps(statements).replace(f'"{without}"', '"s3:ListBucket"') if without else json.dumps(statements)
        name = f"operator-{next(self._names)}"
        return self.cloud.client("wafv2", role_with(self.cloud, *json.loads(text), name=name))


@pytest.fixture
def firewall(account: Listening) -> Firewall:
    return Firewall(account)


def test_the_operator_may_put_a_web_acl_before_its_load_balancer_and_take_it_away(firewall: Firewall) -> None:
    waf = firewall.client(firewall.web_acl)
    waf.associate_web_acl(WebACLArn=firewall.web_acl, ResourceArn=firewall.balancer)
    assert waf.get_web_acl_for_resource(ResourceArn=firewall.balancer)["WebACL"]["ARN"] == firewall.web_acl
    waf.disassociate_web_acl(ResourceArn=firewall.balancer)
    assert "WebACL" not in waf.get_web_acl_for_resource(ResourceArn=firewall.balancer)


def test_a_load_balancer_has_one_web_acl_and_to_dissociate_it_takes_away_the_newest(firewall: Firewall) -> None:
    waf = firewall.cloud.client("wafv2")
    for web_acl in (firewall.web_acl, firewall.another):
        waf.associate_web_acl(WebACLArn=web_acl, ResourceArn=firewall.balancer)
    assert waf.get_web_acl_for_resource(ResourceArn=firewall.balancer)["WebACL"]["ARN"] == firewall.another
    waf.disassociate_web_acl(ResourceArn=firewall.balancer)
    assert "WebACL" not in waf.get_web_acl_for_resource(ResourceArn=firewall.balancer)


@pytest.mark.parametrize("then", ["another", "none"])
def test_the_operator_may_take_away_a_web_acl_that_the_stack_file_names_no_longer(
    firewall: Firewall, then: str
) -> None:
    """The run that removes it, or changes it, has the policy of the new stack file and refreshes the old association."""
    firewall.client(firewall.web_acl).associate_web_acl(WebACLArn=firewall.web_acl, ResourceArn=firewall.balancer)
    waf = firewall.client(firewall.another if then == "another" else None)
    assert waf.get_web_acl_for_resource(ResourceArn=firewall.balancer)["WebACL"]["ARN"] == firewall.web_acl
    waf.disassociate_web_acl(ResourceArn=firewall.balancer)
    if then == "another":
        waf.associate_web_acl(WebACLArn=firewall.another, ResourceArn=firewall.balancer)
    found = waf.get_web_acl_for_resource(ResourceArn=firewall.balancer).get("WebACL", {}).get("ARN")
    assert found == (firewall.another if then == "another" else None)
    status, _, message = refused(waf.associate_web_acl, WebACLArn=firewall.web_acl, ResourceArn=firewall.balancer)
    assert status in (400, 403) and "wafv2:AssociateWebACL" in message, "only the one in the stack file"


@pytest.mark.parametrize("action", ["wafv2:AssociateWebACL", "elasticloadbalancing:SetWebACL"])
def test_each_side_asks_for_a_right_of_its_own(firewall: Firewall, action: str) -> None:
    waf = firewall.client(firewall.web_acl, without=action)
    status, _, message = refused(waf.associate_web_acl, WebACLArn=firewall.web_acl, ResourceArn=firewall.balancer)
    assert status in (400, 403) and action in message
