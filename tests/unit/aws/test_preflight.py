"""What AWS would refuse is reported before anything is made: all at once, with the line and the fix."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.aws.facts import (
    CLUSTER,
    LIVE_SIZES,
    LOG_GROUP,
    ZONE,
    AccountFacts,
    ClusterFact,
    SubnetFact,
)
from modelfleet.infra.aws.here import why_unreachable
from modelfleet.infra.aws.preflight import instance_types, preflight, quota_codes
from modelfleet.infra.aws.registry import ecr_image
from modelfleet.infra.catalog import Quota, default_catalog
from modelfleet.infra.planning.system_roll import SystemNodes
from modelfleet.serving.config.errors import InputErrors, Severity
from tests.unit.aws.builders import ACCOUNT, facts, planned

L4 = {"name": "l4", "accelerator": "L4", "maxNodes": 4, "instanceTypes": ["g6.xlarge"]}
A100 = {"name": "a100", "accelerator": "A100-40G", "maxNodes": 2, "instanceTypes": ["p4d.24xlarge"]}

IMAGE = "111122223333.dkr.ecr.us-east-1.amazonaws.com/team/serving:0.1.0"
DIGEST = f"sha256:{'0' * 64}"


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
    (said,) = sentences(tmp_path, facts(quotas={**facts().quotas, "L-1216C47A": 27.0}))
    assert "need up to 28 vCPUs of 'Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances'" in said, (
        "two m7i.xlarge, one more for a second Ray head, and two m7i.2xlarge that copy weights"
    )


def test_a_capacity_block_needs_no_quota(tmp_path: Path) -> None:
    block = {
        **A100,
        "purchase": "capacity-block",
        "capacityReservationId": "cr-0123456789abcdef0",
        "zones": ["us-west-2a"],
    }
    assert (
        sentences(tmp_path, facts(quotas={"L-1216C47A": 28.0, "L-0263D0A3": 1.0, "L-6D54EA21": 30.0}), pools=[block])
        == []
    )


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
    assert "a capacity block is in one zone; name that one" in said


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
        lacks_image=True,
        has_aws_command=False,
        cluster=ClusterFact("c.eks.amazonaws.com: timed out"),
    )
    said = sentences(tmp_path, known, pools=[L4, A100], kubernetes={"image": IMAGE})
    assert len(said) == 10, "account, offering, quotas of G, P, Standard, addresses, groups, image, command, cluster"


def test_the_types_and_quotas_to_query_come_from_the_plan(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, pools=[L4, A100])
    assert instance_types(plan) == ("g6.xlarge", "m7i.2xlarge", "m7i.xlarge", "p4d.24xlarge")
    assert quota_codes(plan) == ("L-0263D0A3", "L-1216C47A", "L-417A185B", "L-6D54EA21", "L-DB2E81BA")


def test_nat_gateways_need_an_elastic_ip_address_each(tmp_path: Path) -> None:
    network = {"zones": 3, "nat": "per-zone"}
    (said,) = sentences(tmp_path, facts(other_addresses=3), network=network)
    assert "'per-zone' needs 3 Elastic IP addresses, and others have 3 of the 5 that quota L-0263D0A3" in said
    assert "--quota-code L-0263D0A3 --desired-value 6 --region us-west-2" in said
    assert sentences(tmp_path, facts(other_addresses=2), network=network) == [], "five are enough for five"
    assert sentences(tmp_path, facts(other_addresses=4), network={"zones": 3, "nat": "single"}) == []


def test_an_existing_network_needs_no_elastic_ip_address(tmp_path: Path) -> None:
    subnets = tuple(SubnetFact(f"subnet-{z}", "vpc-1", f"us-west-2{z}", 99) for z in "ab")
    network = {"vpcId": "vpc-1", "privateSubnetIds": ["subnet-a", "subnet-b"]}
    assert sentences(tmp_path, facts(subnets=subnets, other_addresses=5), network=network) == []


PRIVATE = {"publicAccessCidrs": [], "privateAccessCidrs": ["10.8.0.0/16"]}


def test_the_first_up_of_a_private_cluster_in_a_new_network_is_refused(tmp_path: Path) -> None:
    """Nothing is connected to the network yet: the run would make nodes that cost money, and nothing on them."""
    (said,) = sentences(tmp_path, facts(), cluster=PRIVATE)
    assert "cluster.publicAccessCidrs: is empty, but a new network has nobody inside" in said
    assert sentences(tmp_path, facts(cluster=ClusterFact(None)), cluster=PRIVATE) == [], "a VPN reaches it meanwhile"
    assert sentences(tmp_path, facts(), cluster={}) == []


def test_a_private_cluster_in_a_connected_network_is_accepted(tmp_path: Path) -> None:
    subnets = tuple(SubnetFact(f"subnet-{z}", "vpc-1", f"us-west-2{z}", 99) for z in "ab")
    network = {"vpcId": "vpc-1", "privateSubnetIds": ["subnet-a", "subnet-b"]}
    assert sentences(tmp_path, facts(subnets=subnets), network=network, cluster=PRIVATE) == []


def test_a_cluster_that_cannot_be_reached_stops_the_run_with_the_command_that_opens_it(tmp_path: Path) -> None:
    (said,) = sentences(tmp_path, facts(cluster=ClusterFact("abc.gr7.us-west-2.eks.amazonaws.com: timed out")))
    assert "cannot be reached from here, abc.gr7.us-west-2.eks.amazonaws.com: timed out" in said
    assert "aws eks update-cluster-config --region us-west-2 --name modelfleet-test" in said


def test_without_the_command_that_makes_tokens_nothing_is_made(tmp_path: Path) -> None:
    (said,) = sentences(tmp_path, facts(has_aws_command=False))
    assert "`aws`, which is not on PATH" in said and "https://docs.aws.amazon.com/cli/" in said


def test_an_image_that_the_registry_lacks_is_refused(tmp_path: Path) -> None:
    """Pods would wait for it, on GPU nodes that cost money."""
    (said,) = sentences(tmp_path, facts(lacks_image=True), kubernetes={"image": IMAGE})
    assert f"kubernetes.image: found '{IMAGE}', which ECR does not have" in said


ZONE_DOOR = {"expose": "internal", "hostname": "models.example.org", "zone": "example.org"}


@pytest.mark.parametrize("unread", [{}, {ZONE: "AccessDenied"}], ids=["absent", "not allowed"])
def test_a_front_door_without_its_zone_is_refused(tmp_path: Path, unread: dict[str, str]) -> None:
    """The run would make a certificate and wait more than an hour for its proof."""
    (said,) = sentences(tmp_path, facts(unread=unread), gateway=ZONE_DOOR)
    assert "modelfleet:gateway.zone: " in said
    assert ("AccessDenied" in said) if unread else ("create-hosted-zone --name example.org" in said)
    assert sentences(tmp_path, facts(zone_id="Z1"), gateway=ZONE_DOOR) == []


def test_what_could_not_be_read_is_said_and_stops_nothing(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, cluster=PRIVATE)
    found = preflight(plan, facts(unread={CLUSTER: "AccessDenied", LOG_GROUP: "AccessDenied"}))
    assert {finding.severity for finding in found} == {Severity.NOTICE}
    assert sorted(finding.message.partition(" could")[0] for finding in found) == ["the cluster", "the log group"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (IMAGE, ("us-east-1", "team/serving", "0.1.0", None)),
        (f"{IMAGE}@{DIGEST}", ("us-east-1", "team/serving", None, DIGEST)),
        (IMAGE.partition(":")[0], ("us-east-1", "team/serving", "latest", None)),
        ("111122223333.dkr.ecr.cn-north-1.amazonaws.com.cn/a:b", ("cn-north-1", "a", "b", None)),
    ],
)
def test_an_image_in_ecr_is_known_by_its_name(name: str, parts: tuple[str | None, ...]) -> None:
    found = ecr_image(name)
    assert found is not None
    assert (found.account, found.region, found.repository, found.tag, found.digest) == ("111122223333", *parts)


@pytest.mark.parametrize("name", [None, "", "vllm/vllm-openai:v0.32.0", "public.ecr.aws/a/b:1", "localhost/serving:1"])
def test_an_image_elsewhere_is_not_looked_up(name: str | None) -> None:
    assert ecr_image(name) is None


def test_a_connection_is_tried_and_its_failure_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert why_unreachable(f"https://127.0.0.1:{port}") is None
    assert why_unreachable(f"https://127.0.0.1:{port}") == "127.0.0.1: Connection refused"
    assert why_unreachable(None) is None, "a cluster that is still being made has no endpoint"
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert why_unreachable(f"https://cluster.example:{port}") is None, "the proxy connects, not this machine"


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        pytest.param({f"t{n}": "x" for n in range(41)}, "has 41; allowed are 40", id="many"),
        pytest.param({"aws:team": "ml"}, "which only AWS may set", id="reserved"),
        pytest.param({"AWS:team": "ml"}, "which only AWS may set", id="reserved-upper"),
        pytest.param({"k" * 129: "ml"}, "allowed are 1 to 128", id="long-key"),
        pytest.param({"team": "v" * 257}, "at most 256", id="long-value"),
        pytest.param({"team": "a & b"}, "found 'a & b'", id="characters"),
        pytest.param({"team,ml": "x"}, "is not a key of a tag", id="characters-of-key"),
        pytest.param({"team": "ml", "Team": "ml"}, "differs from 'team' in case alone", id="case"),
    ],
)
def test_tags_that_a_service_would_refuse_in_the_middle_of_a_run_are_refused_before(
    tmp_path: Path, tags: dict[str, str], words: str
) -> None:
    with pytest.raises(InputErrors) as refused:
        planned(tmp_path, tags=tags)
    (finding,) = refused.value.findings
    assert words in finding.message and finding.path.startswith("modelfleet:tags")


def test_tags_in_any_letters_that_aws_takes_are_accepted(tmp_path: Path) -> None:
    planned(
        tmp_path, tags={"Cost Centre/1": "Zürich: 50+50=100@x_y-z.q", "empty": "", **{f"t{n}": "x" for n in range(38)}}
    )


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


@pytest.mark.parametrize(
    ("rollout", "zones", "said"),
    [("surge", ["us-west-2a"], True), ("replace", ["us-west-2a"], False), ("surge", None, False)],
)
def test_a_pool_whose_one_zone_holds_no_second_cluster_is_warned_of(
    tmp_path: Path, rollout: str, zones: list[str] | None, said: bool
) -> None:
    """The new cluster would wait for nodes that the live one has, and KubeRay waits without end."""
    pool = {**L4, "minNodes": 3, **({"zones": zones} if zones else {})}
    kubernetes = {"rollout": rollout, "image": "registry.example/serving:1"}
    plan, _ = planned(tmp_path, pools=[pool], kubernetes=kubernetes)
    found = [f for f in preflight(plan, facts()) if f.path.endswith("maxNodes")]
    assert [(f.severity, "a new image would wait for 6" in f.message) for f in found] == [
        (Severity.WARNING, True)
    ] * said


def test_live_sizes_that_could_not_be_read_are_a_notice_with_the_rights_that_lack(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path)
    (found,) = preflight(plan, facts(unread={LIVE_SIZES: "AccessDenied: no"}))
    assert found.severity == Severity.NOTICE
    assert "AccessDenied: no; allow eks:ListClusters, eks:ListNodegroups and eks:DescribeNodegroup" in found.message


RESERVED = {"purchase": ["reservation", "spot", "on-demand"], "capacityReservationId": "cr-0123456789abcdef0"}


def test_each_rung_counts_against_its_own_quota_and_a_reservation_against_that_on_demand(tmp_path: Path) -> None:
    """Any rung may give all nodes; a reservation and instances on demand are never more than the pool together."""
    gpus = {quota.code: 0.0 for key, quota in default_catalog().quotas.items() if key[0].startswith("g")}
    ladder = {**L4, **RESERVED, "capacityReservationZone": "us-west-2b"}
    said = sentences(tmp_path, facts(quotas={**facts().quotas, **gpus}), pools=[ladder])
    assert sorted(one.split("; ")[0].partition("need ")[2] for one in said) == [
        "up to 16 vCPUs of 'All G and VT Spot Instance Requests'",
        "up to 16 vCPUs of 'Running On-Demand G and VT instances'",
    ]


A10G = {"accelerator": "A10G", "instanceTypes": ["g5.xlarge", "g5.2xlarge"]}


@pytest.mark.parametrize(
    ("purchase", "quota", "said"),
    [("on-demand", 19, True), ("on-demand", 20, False), ("spot", 16, False)],
    ids=["of the same quota", "enough", "each rung of its own quota"],
)
def test_a_quota_without_room_for_a_worker_that_returns_is_a_warning(
    tmp_path: Path, purchase: str, quota: float, said: bool
) -> None:
    """At maxNodes the placeholder would never get a node, and nobody would learn why workers stay."""
    pool = {
        **L4,
        "purchase": purchase,
        "fallback": [{**A10G, "instanceTypes": ["g5.xlarge"]}],
        "returnAfterMinutes": 15,
    }
    plan, _ = planned(tmp_path, pools=[pool])
    found = preflight(plan, facts(quotas={**facts().quotas, "L-DB2E81BA": quota}))
    assert [(one.severity, "need 20 vCPUs" in one.message) for one in found] == [(Severity.WARNING, True)] * said


def test_a_fallbacks_types_are_found_where_they_are_written(tmp_path: Path) -> None:
    offered = {**facts().offerings, "g5.xlarge": frozenset({"us-west-2d"}), "g5.2xlarge": frozenset()}
    pools = [{**L4, "fallback": [A10G]}]
    (absent,) = sentences(tmp_path / "a", facts(offerings=offered), pools=pools)
    assert "pools[0].fallback[0].instanceTypes: g5.2xlarge not offered in us-west-2" in absent
    somewhere = {**offered, "g5.2xlarge": frozenset({"us-west-2d"})}
    (outside,) = sentences(tmp_path / "b", facts(offerings=somewhere), pools=pools)
    assert "pools[0].fallback[0].instanceTypes: g5.xlarge is offered in us-west-2d, but in none" in outside
    (never,) = sentences(
        tmp_path / "c", facts(offerings={**somewhere, "g5.xlarge": frozenset({"us-west-2a"})}), pools=pools
    )
    assert "pools[0].fallback[0].instanceTypes: g5.2xlarge is offered in none of the pool's zones" in never


def test_a_reservation_names_its_zone_where_the_pool_has_several(tmp_path: Path) -> None:
    (said,) = sentences(tmp_path / "a", facts(), pools=[{**L4, **RESERVED}])
    assert "pools[0].capacityReservationZone: is not set, and the pool is in us-west-2a, us-west-2b" in said
    assert sentences(tmp_path / "b", facts(), pools=[{**L4, **RESERVED, "capacityReservationZone": "us-west-2b"}]) == []
    assert sentences(tmp_path / "c", facts(), pools=[{**L4, **RESERVED, "zones": ["us-west-2a"]}]) == []


def test_a_reservation_outside_the_network_is_of_no_use(tmp_path: Path) -> None:
    (said,) = sentences(tmp_path, facts(), pools=[{**L4, **RESERVED, "capacityReservationZone": "us-west-2d"}])
    assert "pools[0].capacityReservationZone: found us-west-2d; the network's zones are us-west-2a, us-west-2b" in said


@pytest.mark.parametrize(
    ("ladders", "quota", "said"),
    [
        pytest.param(6, 30, None, id="27 of 30"),
        pytest.param(7, 30, "--quota-code L-6D54EA21 --desired-value 31 --region us-west-2", id="31 of 30"),
        pytest.param(7, 31, None, id="31 of 31"),
        pytest.param(25, 100, "no account gets more than 100: give pools fewer", id="103 of 100"),
    ],
)
def test_more_node_groups_than_the_account_may_have_are_refused(
    tmp_path: Path, ladders: int, quota: float, said: str | None
) -> None:
    """Two zones: 2 groups of the system, 1 of the mirror, and 4 for each ladder of two purchases."""
    pools = [{**L4, "name": f"l4-{n}", "purchase": ["spot", "on-demand"]} for n in range(ladders)]
    known = facts(quotas={**facts().quotas, "L-6D54EA21": quota})
    found = [one for one in sentences(tmp_path, known, pools=pools) if "managed node groups" in one]
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


@pytest.mark.parametrize(
    ("control_plane", "groups", "said"),
    [
        pytest.param("1.35", {"l4-a": "1.35"}, None, id="there"),
        pytest.param("1.34", {"l4-a": "1.34", "system-a": "1.34"}, None, id="one up"),
        pytest.param("1.35", {"l4-a": "1.34", "system-a": "1.35"}, None, id="an update that stopped goes on"),
        pytest.param(
            "1.34",
            {"l4-a": "1.33", "system-a": "1.34"},
            "found 1.35, and EKS goes up from 1.34 once all node groups have 1.34; these have not: l4-a; write 1.34, run",
            id="a group lags",
        ),
        pytest.param("1.33", {"l4-a": "1.33"}, "the control plane has 1.33; EKS goes up one minor", id="two up"),
        pytest.param("1.33", {}, "write 1.34, run this, then go on", id="two up, groups unread"),
        pytest.param("1.36", {"l4-a": "1.35"}, "EKS never goes back: write 1.36 or 1.37", id="back"),
    ],
)
def test_a_version_is_reached_one_minor_at_a_time(
    tmp_path: Path, control_plane: str, groups: dict[str, str], said: str | None
) -> None:
    known = facts(cluster=ClusterFact(None, control_plane), group_versions=groups)
    found = [one for one in sentences(tmp_path, known, pools=[L4], cluster={"version": "1.35"}) if "EKS" in one]
    assert len(found) == (said is not None), found
    assert said is None or said in found[0]


def test_a_node_group_whose_creation_failed_is_named_with_its_fix(tmp_path: Path) -> None:
    (said,) = sentences(tmp_path, facts(failed_groups=("l4-a-0123",)), pools=[L4])
    assert said.endswith("--cluster-name modelfleet-test --nodegroup-name l4-a-0123")


#: The stack's own tag, and one that an account's policy put there.
LIVE = SystemNodes("1.35", "1.35.0-20261101", ("m7i.xlarge",), {"team": "a", "made-by": "somebody"})


@pytest.mark.parametrize(
    ("keys", "change"),
    [
        pytest.param({"cluster": {"version": "1.36"}}, "cluster.version: changes from 1.35 to 1.36", id="kubernetes"),
        pytest.param(
            {"cluster": {"nodeRelease": "1.35.0-20261128"}},
            "cluster.nodeRelease: changes from 1.35.0-20261101 to 1.35.0-20261128",
            id="release",
        ),
        pytest.param(
            {"cluster": {"systemInstanceType": "m7i.2xlarge"}},
            "cluster.systemInstanceType: changes from m7i.xlarge to m7i.2xlarge",
            id="type",
        ),
        pytest.param({"tags": {"team": "b"}}, "tags.team: changes from a to b", id="tag"),
        pytest.param({"tags": {"team": "a", "cost": "1"}}, "tags.cost: changes from unset to 1", id="another-tag"),
    ],
)
def test_a_run_that_replaces_system_nodes_says_what_it_interrupts(
    tmp_path: Path, keys: dict[str, Any], change: str
) -> None:
    """The Ray head is on one of them; a preview showed an update of a node group, and then no model answered."""
    plan, _ = planned(tmp_path, **keys)
    (found,) = preflight(plan, facts(system_nodes=(LIVE, LIVE)))
    assert found.severity == Severity.WARNING
    assert f"{change}, so the system nodes are replaced, 2 one after another in 3 to 21 min" in found.sentence()
    assert "every replica ends with it, and no model answers for about 9 min" in found.message

    plan, _ = planned(tmp_path, **keys, kubernetes={"headStorage": "valkey"})
    (found,) = preflight(plan, facts(system_nodes=(LIVE, LIVE)))
    assert found.severity == Severity.NOTICE
    assert "replicas, new requests and open streams go on" in found.message


@pytest.mark.parametrize("live", [(), (LIVE,)], ids=["none-yet", "as-they-are"])
def test_system_nodes_that_stay_are_not_mentioned(tmp_path: Path, live: tuple[SystemNodes, ...]) -> None:
    plan, _ = planned(tmp_path, tags={"team": "a"})
    assert preflight(plan, facts(system_nodes=live)) == []
