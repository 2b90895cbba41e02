"""What a roll of the system nodes interrupts, and for how long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelfleet.infra.kubernetes.manifests.gateway import gateway_deployment
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.system_roll import SystemRoll, system_nodes_of, system_roll
from tests.unit.planning.builders import model, planned, pool, stack


def made(**keys: Any) -> Plan:
    return planned([model()], stack(pool(), **keys))


def roll(plan: Plan, *, head_survives: bool) -> SystemRoll:
    """Of a change of the instance type."""
    live = system_nodes_of(plan)
    assert live is not None
    found = system_roll(replace(live, instance_types=("m7i.large",)), plan, head_survives=head_survives)
    assert found is not None
    return found


def test_without_a_store_no_model_answers_until_the_head_and_then_the_models_are_back() -> None:
    lost = roll(made(), head_survives=False)
    assert (lost.head_minutes, lost.gap_minutes) == (6, 9), "331 s for the head, then three minutes for a model"
    assert "every replica ends with it, and no model answers for about 9 min" in lost.sentence
    assert "set kubernetes.headStorage: valkey in a run before this one" in lost.sentence


def test_with_a_store_replicas_go_on_and_only_scaling_waits() -> None:
    kept = roll(made(), head_survives=True)
    assert (kept.head_minutes, kept.gap_minutes) == (6, 0)
    assert "replicas, new requests and open streams go on; nothing scales for about 6 min" in kept.sentence
    assert "no model answers" not in kept.sentence


def test_a_store_that_comes_with_the_same_run_comes_too_late() -> None:
    """The live head has none, and its node may be the first to go."""
    from modelfleet.cli.plan_diff import roll_warnings

    before, after = made(), made(cluster={"version": "1.36"}, kubernetes={"headStorage": "valkey"})
    assert after.head_survives
    assert "no model answers" in roll_warnings(before, after)[0]


def test_more_system_nodes_take_longer_one_after_another() -> None:
    two, four = (roll(made(cluster={"systemNodes": count}), head_survives=True) for count in (2, 4))
    assert [(one.nodes, one.least_minutes, one.most_minutes) for one in (two, four)] == [(2, 3, 21), (4, 6, 42)]


@pytest.mark.parametrize(("timeout_s", "minutes"), [(120, 2), (3600, 9)], ids=["all-of-it", "what-EKS-waits-for"])
def test_a_stream_has_what_a_leaving_gateway_pod_gives_it(timeout_s: int, minutes: int) -> None:
    plan = made(gateway={"timeoutS": timeout_s})
    assert roll(plan, head_survives=True).stream_minutes == minutes
    pod = gateway_deployment(plan, "")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= minutes * 60


def test_a_gateway_alone_leaves_nobody_who_takes_requests() -> None:
    one, two = (roll(made(gateway={"replicas": count}), head_survives=True).sentence for count in (1, 2))
    assert "new requests fail until the next is ready" in one and "gateway: one pod moves at a time" in two


def test_nodes_that_stay_and_nodes_of_others_are_no_roll() -> None:
    plan = made()
    assert system_roll(system_nodes_of(plan), plan, head_survives=False) is None
    theirs = planned([model()], stack(pool(instanceTypes=["g6.2xlarge"]), target="kubernetes"))
    assert system_nodes_of(theirs) is None
    assert system_roll(system_nodes_of(plan), theirs, head_survives=False) is None
