"""What AWS would refuse is reported before anything is made: all at once, with the line and the fix."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.aws.facts import AccountFacts, SubnetFact
from modelfleet.infra.aws.preflight import instance_types, preflight, quota_codes
from modelfleet.infra.catalog import Quota, default_catalog
from modelfleet.serving.config.errors import Severity
from tests.unit.aws.builders import ACCOUNT, facts, planned

L4 = {"name": "l4", "accelerator": "L4", "maxNodes": 4, "instanceTypes": ["g6.xlarge"]}
A100 = {"name": "a100", "accelerator": "A100-40G", "maxNodes": 2, "instanceTypes": ["p4d.24xlarge"]}


def sentences(root: Path, known: AccountFacts, **stack: Any) -> list[str]:
    plan, _ = planned(root, **stack)
    return [finding.sentence() for finding in preflight(plan, known)]


def test_an_account_with_everything_has_no_finding(tmp_path: Path) -> None:
    assert sentences(tmp_path, facts()) == []


def test_a_quota_below_the_plans_maximum_names_the_code_the_numbers_and_the_command(tmp_path: Path) -> None:
    known = facts(quotas={**facts().quotas, "L-DB2E81BA": 8.0})
    (said,) = sentences(tmp_path, known)
    assert said.startswith("stacks/Pulumi.test.yaml:")
    assert "need up to 16 vCPUs of 'Running On-Demand G and VT instances'" in said, "4 nodes of 4 vCPUs"
    assert "quota L-DB2E81BA in us-west-2 is 8" in said
    assert "--quota-code L-DB2E81BA --desired-value 16 --region us-west-2" in said


def test_a_quota_that_is_exactly_enough_is_enough(tmp_path: Path) -> None:
    assert sentences(tmp_path, facts(quotas={**facts().quotas, "L-DB2E81BA": 16.0})) == []


def test_quotas_add_up_over_the_pools_of_a_family_and_purchase(tmp_path: Path) -> None:
    pools = [L4, {**L4, "name": "l4b"}, {**L4, "name": "spot", "purchase": "spot"}]
    known = facts(quotas={**facts().quotas, "L-DB2E81BA": 31.0, "L-3819A6DF": 15.0})
    said = sentences(tmp_path, known, pools=pools)
    assert ["32 vCPUs of 'Running On-Demand G and VT instances'" in s for s in said] == [False, True]
    assert ["16 vCPUs of 'All G and VT Spot Instance Requests'" in s for s in said] == [True, False]


def test_the_system_pool_counts_against_the_standard_quota(tmp_path: Path) -> None:
    (said,) = sentences(tmp_path, facts(quotas={**facts().quotas, "L-1216C47A": 23.0}))
    assert "need up to 24 vCPUs of 'Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances'" in said, (
        "two m7i.xlarge, and two m7i.2xlarge that copy weights"
    )


def test_a_capacity_block_needs_no_quota(tmp_path: Path) -> None:
    block = {
        **A100,
        "purchase": "capacity-block",
        "capacityReservationId": "cr-0123456789abcdef0",
        "zones": ["us-west-2a"],
    }
    assert sentences(tmp_path, facts(quotas={"L-1216C47A": 24.0}), pools=[block]) == []


def test_a_quota_that_cannot_be_read_is_reported_and_stops_nothing(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path)
    quotas = {code: value for code, value in facts().quotas.items() if code != "L-DB2E81BA"}
    known = facts(quotas=quotas, unread={"L-DB2E81BA": "AccessDenied"})
    (finding,) = preflight(plan, known)
    assert finding.severity is Severity.NOTICE
    assert "L-DB2E81BA" in finding.message and "AccessDenied" in finding.message


def test_a_wrong_account_is_named_with_the_right_one(tmp_path: Path) -> None:
    (said,) = sentences(tmp_path, facts(account="999999999999"))
    assert f"found '{ACCOUNT}', but the credentials belong to account 999999999999" in said


def test_administrators_without_the_caller_of_pulumi_are_refused(tmp_path: Path) -> None:
    cluster = {"adminRoleArns": ["arn:aws:iam::123456789012:role/other"]}
    (said,) = sentences(tmp_path, facts(), cluster=cluster)
    assert "role/deployer, which runs Pulumi" in said


def test_a_type_that_the_region_lacks_is_refused(tmp_path: Path) -> None:
    known = facts(offerings={**facts().offerings, "p4d.24xlarge": frozenset()})
    (said,) = sentences(tmp_path, known, pools=[A100])
    assert "p4d.24xlarge not offered in us-west-2" in said


def test_a_type_offered_only_outside_the_pools_zones_names_its_zone(tmp_path: Path) -> None:
    known = facts(offerings={**facts().offerings, "p4d.24xlarge": frozenset({"us-west-2d"})})
    (said,) = sentences(tmp_path, known, pools=[A100])
    assert "p4d.24xlarge is offered in us-west-2d, but in none of the pool's zones us-west-2a, us-west-2b" in said
    assert sentences(tmp_path, known, pools=[A100], network={"zones": 4}) == []


def test_a_pool_in_a_zone_outside_the_network_is_refused(tmp_path: Path) -> None:
    said = sentences(tmp_path, facts(), pools=[{**L4, "zones": ["us-west-2c"]}])
    assert any("found us-west-2c, outside the network's zones us-west-2a, us-west-2b" in s for s in said)


def test_a_capacity_block_must_name_its_one_zone(tmp_path: Path) -> None:
    block = {**A100, "purchase": "capacity-block", "capacityReservationId": "cr-0123456789abcdef0"}
    (said,) = sentences(tmp_path, facts(), pools=[block])
    assert "that of its reservation; name that one" in said


def test_the_system_type_must_be_in_every_zone(tmp_path: Path) -> None:
    known = facts(offerings={**facts().offerings, "m7i.xlarge": frozenset({"us-west-2a"})})
    (said,) = sentences(tmp_path, known)
    assert "'m7i.xlarge' is not offered in us-west-2b; it is offered in us-west-2a" in said


def test_too_few_zones_are_named(tmp_path: Path) -> None:
    (said,) = sentences(tmp_path, facts(), network={"zones": 6})
    assert "found 6, but us-west-2 has 4 that EKS accepts" in said


@pytest.mark.parametrize(
    ("subnets", "words"),
    [
        pytest.param((), "which is not in account", id="absent"),
        pytest.param((SubnetFact("subnet-1", "vpc-9", "us-west-2a", 99),), "which is in vpc-9", id="other-vpc"),
        pytest.param((SubnetFact("subnet-1", "vpc-1", "us-west-2a", 3),), "has 3 free addresses", id="full"),
        pytest.param(
            (SubnetFact("subnet-1", "vpc-1", "us-west-2a", 99),), "EKS needs subnets in 2 zones", id="one-zone"
        ),
    ],
)
def test_an_existing_network_is_checked(tmp_path: Path, subnets: tuple[SubnetFact, ...], words: str) -> None:
    network = {"vpcId": "vpc-1", "privateSubnetIds": ["subnet-1"]}
    said = sentences(tmp_path, facts(subnets=subnets), network=network)
    assert any(words in s for s in said), said


def test_an_existing_network_without_dns_names_is_refused(tmp_path: Path) -> None:
    subnets = tuple(SubnetFact(f"subnet-{z}", "vpc-1", f"us-west-2{z}", 99) for z in "ab")
    known = facts(subnets=subnets, vpc_without=("enableDnsHostnames",))
    network = {"vpcId": "vpc-1", "privateSubnetIds": ["subnet-a", "subnet-b"]}
    (said,) = sentences(tmp_path, known, network=network)
    assert "'vpc-1' has enableDnsHostnames switched off" in said
    assert "aws ec2 modify-vpc-attribute --vpc-id vpc-1" in said


def test_a_region_without_the_type_that_copies_weights_is_told_the_key(tmp_path: Path) -> None:
    known = facts(offerings={**facts().offerings, "m7i.2xlarge": frozenset()})
    (said,) = sentences(tmp_path, known)
    assert "mirror.instanceType: 'm7i.2xlarge' copies the weights and is not offered in us-west-2a, us-west-2b" in said
    chosen = {"instanceType": "m7i.xlarge"}
    assert sentences(tmp_path, known, mirror=chosen) == []


def test_all_findings_come_at_once(tmp_path: Path) -> None:
    known = facts(
        account="999999999999",
        quotas=dict.fromkeys(facts().quotas, 0.0),
        offerings={**facts().offerings, "p4d.24xlarge": frozenset()},
    )
    said = sentences(tmp_path, known, pools=[L4, A100])
    assert len(said) == 5, "account, offering, and the quotas of G, P and Standard"


def test_the_types_and_quotas_to_query_come_from_the_plan(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, pools=[L4, A100])
    assert instance_types(plan) == ("g6.xlarge", "m7i.2xlarge", "m7i.xlarge", "p4d.24xlarge")
    assert quota_codes(plan) == ("L-1216C47A", "L-417A185B", "L-DB2E81BA")


G, P = "Running On-Demand G and VT instances", "Running On-Demand P instances"
STANDARD = "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances"


@pytest.mark.parametrize(
    ("name", "purchase", "code", "called"),
    [
        ("g4dn.xlarge", "on-demand", "L-DB2E81BA", G),
        ("g5.48xlarge", "on-demand", "L-DB2E81BA", G),
        ("gr6.4xlarge", "on-demand", "L-DB2E81BA", G),
        ("vt1.3xlarge", "on-demand", "L-DB2E81BA", G),
        ("g6.xlarge", "spot", "L-3819A6DF", "All G and VT Spot Instance Requests"),
        ("p4d.24xlarge", "on-demand", "L-417A185B", P),
        ("p4de.24xlarge", "on-demand", "L-417A185B", P),
        ("p4de.24xlarge", "spot", "L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
        ("m7i.xlarge", "on-demand", "L-1216C47A", STANDARD),
        ("c7gn.large", "on-demand", "L-1216C47A", STANDARD),
        ("c7gn.large", "spot", "L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests"),
    ],
)
def test_a_type_counts_against_the_quota_of_its_family(name: str, purchase: str, code: str, called: str) -> None:
    """From `aws service-quotas list-service-quotas --service-code ec2`; a wrong code may name an ample quota."""
    assert default_catalog().quota(name, purchase) == Quota(code, called)


def test_the_longest_matching_prefix_of_the_type_wins() -> None:
    """A P family can have its own quota."""
    own = Quota("L-0000000X", "All P9 Spot Instance Requests")
    catalog = default_catalog()
    wider = dataclasses.replace(catalog, quotas={("p9", "spot"): own, **catalog.quotas})
    assert wider.quota("p9.48xlarge", "spot") == own
    assert wider.quota("p4d.24xlarge", "spot") == catalog.quota("p4d.24xlarge", "spot")
