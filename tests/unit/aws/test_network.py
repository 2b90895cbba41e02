"""The address plan of a new VPC, the zones of network and pools, and the networks that are refused."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleet.infra.aws.zones import control_plane_subnets, network_zones, rung_zones
from modelfleet.infra.planning.network import subnet_blocks
from modelfleet.serving.config.errors import InputErrors
from tests.unit.aws.builders import facts, planned

EXISTING = {"vpcId": "vpc-1", "privateSubnetIds": ["subnet-1", "subnet-2"]}
POOL = {"name": "l4", "accelerator": "L4", "maxNodes": 4, "instanceTypes": ["g6.xlarge"]}


def test_subnets_of_a_usual_vpc() -> None:
    blocks = subnet_blocks("10.0.0.0/16", 3)
    assert blocks.private == ("10.0.0.0/19", "10.0.32.0/19", "10.0.64.0/19")
    assert blocks.public == ("10.0.224.0/24", "10.0.225.0/24", "10.0.226.0/24")


@given(prefix=st.integers(16, 17), block=st.integers(0, 255), zones=st.integers(2, 6))
def test_subnets_are_in_the_vpc_and_never_overlap(prefix: int, block: int, zones: int) -> None:
    vpc = ip_network(f"10.{block}.0.0/{prefix}")
    blocks = subnet_blocks(str(vpc), zones)
    networks = [ip_network(cidr) for cidr in (*blocks.private, *blocks.public)]
    assert len(networks) == 2 * zones
    assert all(network.subnet_of(vpc) for network in networks)  # type: ignore[arg-type]
    assert not any(a.overlaps(b) for i, a in enumerate(networks) for b in networks[i + 1 :])
    assert all(ip_network(cidr).prefixlen <= 20 for cidr in blocks.private), "a GPU node takes about 100 addresses"


def test_another_zone_moves_no_subnet() -> None:
    for zones in range(2, 6):
        less, more = subnet_blocks("10.0.0.0/16", zones), subnet_blocks("10.0.0.0/16", zones + 1)
        assert more.private[:zones] == less.private, "a subnet's CIDR is force-new, so its nodes would be lost"
        assert more.public[:zones] == less.public


def test_another_pool_moves_no_zone_of_the_network(tmp_path: Path) -> None:
    scarce = {"name": "a", "accelerator": "A100-40G", "maxNodes": 1, "instanceTypes": ["p4d.24xlarge"]}
    known = facts(offerings={**facts().offerings, "p4d.24xlarge": frozenset({"us-west-2b"})})
    before, _ = planned(tmp_path, pools=[POOL])
    after, _ = planned(tmp_path, pools=[POOL, scarce])
    assert network_zones(before, known) == network_zones(after, known) == ("us-west-2a", "us-west-2b")
    assert rung_zones(after.pools[1].rungs[0], network_zones(after, known), known) == ("us-west-2b",)


def test_the_control_plane_keeps_its_two_zones_when_zones_and_subnets_are_added() -> None:
    """EKS refuses to change the zones of a cluster."""
    before = {"us-west-2a": ["s1"], "us-west-2b": ["s2"]}
    after = {"us-west-2a": ["s1", "s4"], "us-west-2b": ["s2"], "us-west-2c": ["s3"]}
    assert control_plane_subnets(before) == control_plane_subnets(after) == ["s1", "s2"]


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        pytest.param({"network": {"cidr": "10.0.0.0/24"}}, "from /16 to /17", id="small"),
        pytest.param({"network": {"cidr": "10.0.0.0/8"}}, "from /16 to /17", id="large"),
        pytest.param({"network": {"cidr": "8.8.0.0/16"}}, "use a private range", id="public"),
        pytest.param({"network": {"cidr": "ten"}}, "which is not a network", id="no-network"),
        pytest.param({"network": {"cidr": "10.0.1.0/16"}}, "which is not a network", id="host-bits"),
        pytest.param({"network": {"nat": "none"}}, "write single or per-zone", id="no-egress"),
        pytest.param({"network": {"nat": "none", "interfaceEndpoints": True}}, "registry.k8s.io", id="aws-only"),
        pytest.param({"cluster": {"publicAccessCidrs": []}}, "lets nobody reach", id="nobody"),
        pytest.param(
            {"cluster": {"publicAccessCidrs": []}, "network": EXISTING}, "a CI runner inside network.vpcId", id="vpc"
        ),
        pytest.param({"cluster": {"publicAccessCidrs": ["10.8.0.0/16"]}}, "move it to privateAccessCidrs", id="vpn"),
        pytest.param({"cluster": {"privateAccessCidrs": ["vpn"]}}, "which is not an IPv4 network", id="no-vpn"),
        pytest.param({"cluster": {"privateAccessCidrs": ["fd00::/8"]}}, "which is not an IPv4 network", id="vpn-v6"),
        pytest.param({"cluster": {"privateAccessCidrs": ["0.0.0.0/0"]}}, "as good as every address", id="all"),
        pytest.param({"cluster": {"publicAccessCidrs": ["0.0.0.0/0"]}}, "to the internet", id="open"),
        pytest.param({"cluster": {"publicAccessCidrs": ["0.0.0.0/1"]}}, "to the internet", id="half-open"),
        pytest.param({"cluster": {"publicAccessCidrs": ["::/0"]}}, "to the internet", id="open-v6"),
        pytest.param({"cluster": {"publicAccessCidrs": ["office"]}}, "which is not a network", id="no-cidr"),
    ],
)
def test_a_network_that_would_not_work_is_refused_with_its_line(tmp_path: Path, stack: Any, words: str) -> None:
    with pytest.raises(InputErrors) as refused:
        planned(tmp_path, **stack)
    (finding,) = refused.value.findings
    assert words in finding.message
    assert finding.line > 0


@pytest.mark.parametrize(
    "cluster",
    [
        {"publicAccessCidrs": ["203.0.113.0/24"]},
        {"publicAccessCidrs": ["0.0.0.0/0"], "allowPublicAccessFromAnywhere": True},
        {"publicAccessCidrs": [], "privateAccessCidrs": ["10.8.0.0/16"]},
        {"publicAccessCidrs": [], "privateAccessSecurityGroupIds": ["sg-0123456789abcdef0"]},
    ],
)
def test_an_endpoint_for_named_networks_or_with_confirmation_is_accepted(tmp_path: Path, cluster: Any) -> None:
    planned(tmp_path, cluster=cluster)
