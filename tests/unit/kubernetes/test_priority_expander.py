"""The order of node groups as cluster-autoscaler reads it: the pattern of a rung matches its groups and no others."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.infra.kubernetes.manifests.autoscaler import cluster_autoscaler, priority_expander
from tests.unit.planning.builders import model, planned, pool, stack
from tools.kubernetes.autoscaler import PriorityExpander

SUFFIX = "20261129120000123400000001"
UUID = "9ac5a5c4-4b1c-2f52-9d0e-1c0f0c1f8a11"


def expander(*pools: Any) -> PriorityExpander:
    return PriorityExpander(priority_expander(planned([model()], stack(*pools))))


def group(rung: str, letter: str = "a") -> str:
    """The Auto Scaling group of a rung's node group in one zone."""
    return f"eks-{rung}-{letter}-{SUFFIX}-{UUID}"


LADDERS = (
    pool(purchase=["spot", "on-demand"]),
    pool("l4-a", purchase=["on-demand", "spot"]),
    pool("l4-b"),
    pool("l4-spot", purchase="spot"),
    pool("l4-x", fallback=[{"accelerator": "A10G", "instanceTypes": ["g5.xlarge"], "purchase": ["spot", "on-demand"]}]),
)


def test_the_first_rung_of_each_pool_comes_first() -> None:
    order = expander(*LADDERS)
    for pool_name, first, second in (("l4", "l4_spot", "l4"), ("l4-a", "l4-a", "l4-a_spot")):
        both = [group(rung, letter) for rung in (first, second) for letter in "abc"]
        assert order.best(both) == both[:3], pool_name
        assert order.best(both[3:]) == both[3:], "with the first rung backed off"


def test_another_card_comes_after_the_pools_own() -> None:
    order = expander(*LADDERS)
    rungs = [group(rung) for rung in ("l4-x", "l4-x_a10g_spot", "l4-x_a10g")]
    assert order.best(reversed(rungs)) == rungs[:1]
    assert order.best(rungs[1:]) == rungs[1:2], "with the pool's own card backed off"


@pytest.mark.parametrize("other", ["l4", "l4-a", "l4-b", "l4-spot"])
def test_the_pattern_of_a_pool_matches_no_other_pool(other: str) -> None:
    """Pool `l4` in zone b and pool `l4-b` are both `eks-l4-b-…`, and a pool's own order would be another's."""
    patterns = expander(pool(other, purchase=["spot", "on-demand"]))
    for rung in ("l4", "l4_spot", "l4-a", "l4-a_spot", "l4-b", "l4-spot_spot", "l4-spot"):
        ours = rung in (other, f"{other}_spot")
        assert (patterns.priority(group(rung, "b")) > 1) is ours, rung


def test_the_stacks_own_groups_are_known_and_last() -> None:
    """Of a group without any priority the autoscaler says, in an event at each turn, that it will not be used."""
    order = expander(*LADDERS)
    own = [group("system"), group("mirror")]
    assert [order.priority(name) for name in own] == [1, 1]
    assert order.best(own) == own, "with the same priority, and so the least waste decides"


def test_the_autoscaler_asks_the_ladder_before_the_least_waste() -> None:
    *_, deployment = cluster_autoscaler(planned([model()], stack(*LADDERS)), "c")
    command = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    assert "--expander=priority,least-waste" in command
    assert "--max-node-provision-time=900s" in command


def test_the_autoscaler_may_read_its_priorities() -> None:
    made = cluster_autoscaler(planned([model()], stack(*LADDERS)), "c")
    (config,) = (one for one in made if one["kind"] == "ConfigMap")
    (role,) = (one for one in made if one["kind"] == "Role")
    named = [rule for rule in role["rules"] if config["metadata"]["name"] in rule.get("resourceNames", ())]
    assert config["metadata"]["namespace"] == role["metadata"]["namespace"]
    assert [sorted(rule["verbs"]) for rule in named] == [["delete", "get", "update", "watch"]]
    assert any("list" in rule["verbs"] and rule["resources"] == ["configmaps"] for rule in role["rules"])


def test_the_autoscaler_is_restarted_when_it_hangs_and_writes_its_own_objects_alone() -> None:
    made = cluster_autoscaler(planned([model()], stack(*LADDERS)), "c")
    (container,) = made[-1]["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/health-check", "port": "http"}
    rules = {one["kind"]: one["rules"] for one in made if one["kind"] in ("Role", "ClusterRole")}
    assert not {kind for rule in rules["ClusterRole"] for kind in rule["resources"]} & {"configmaps", "leases"}
    unnamed = {verb for rule in rules["Role"] if "resourceNames" not in rule for verb in rule["verbs"]}
    assert unnamed <= {"create", "list", "watch"}
