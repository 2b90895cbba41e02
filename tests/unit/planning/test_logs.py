"""Where what pods write goes: `modelfleet:observability.logs`."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.cli.plan_diff import rebuild_warnings
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.names import LOG_COLLECTOR
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.plan import LogCollectorPlan
from modelfleet.serving.config.errors import InputErrors
from tests.unit.planning.builders import model, planned, pool, stack

L4 = pool(instanceTypes=["g6.2xlarge"])
CATALOG = default_catalog()
(ROW,) = [one for one in CATALOG.daemon_sets if one.name == LOG_COLLECTOR]


def plan_of(logs: dict[str, Any]) -> Plan:
    return planned([model()], stack(L4, observability=logs))


def refused(target: str, **logs: Any) -> list[str]:
    pools, region = ([], None) if target == "local" else ([L4], "us-east-1")
    with pytest.raises(InputErrors) as raised:
        planned([], stack(*pools, target=target, region=region, observability=logs))
    return [one.sentence() for one in raised.value.findings]


def test_cloudwatch_is_json_and_a_collector_on_each_node() -> None:
    plan = plan_of({"logs": "cloudwatch", "logRetentionDays": 90})
    assert (plan.logs, plan.log_collector) == ("json", LogCollectorPlan(90, ROW.cpu_millis, ROW.memory_mib))
    assert [(one.logs, one.log_collector) for one in (plan_of({}), plan_of({"logs": "json"}))] == [
        ("text", None),
        ("json", None),
    ]


def test_every_node_keeps_room_for_the_collector_and_for_nothing_else() -> None:
    """A worker that takes the rest of the node would wait forever on one that the collector came to first."""
    without, plan = plan_of({"logs": "json"}), plan_of({"logs": "cloudwatch"})
    for before, after in zip(without.node_groups, plan.node_groups, strict=True):
        assert before.node.cpu_millis - after.node.cpu_millis == ROW.cpu_millis > 0
        assert before.node.memory_mib - after.node.memory_mib == ROW.memory_mib > 0
    assert without.node_groups[0].node == plan_of({}).node_groups[0].node


def test_a_catalog_counts_a_daemon_set_only_for_who_asks_for_it() -> None:
    less, more = CATALOG.daemon_requests(gpu=False), CATALOG.with_daemon_sets("logs").daemon_requests(gpu=False)
    assert (more[0] - less[0], more[1] - less[1]) == (ROW.cpu_millis, ROW.memory_mib)
    assert CATALOG.with_daemon_sets("another").daemon_requests(gpu=False) == less


def test_the_diff_says_that_turning_it_on_and_off_builds_the_ray_cluster_anew() -> None:
    off, on = plan_of({"logs": "json"}), plan_of({"logs": "cloudwatch"})
    for before, after in ((off, on), (on, off)):
        (warning,) = rebuild_warnings(before, after)
        assert warning.startswith("the Ray cluster changes (worker groups l4; ")
    assert rebuild_warnings(plan_of({}), off) == []


def test_other_targets_say_in_one_line_what_to_write_there() -> None:
    (cluster,) = refused("kubernetes", logs="cloudwatch")
    assert cluster.startswith("stacks/Pulumi.test.yaml:") and "modelfleet:observability.logs" in cluster
    assert "is for target eks" in cluster and "say json, and let the cluster's own collector" in cluster
    for form in ("json", "cloudwatch"):
        (here,) = refused("local", logs=form)
        assert f"found '{form}', which is for pods; remove it: on this machine logs are files" in here


def test_days_without_cloudwatch_are_refused_and_so_are_days_that_it_does_not_take() -> None:
    (sentence,) = refused("eks", logs="json", logRetentionDays=30)
    assert "logRetentionDays" in sentence and "logs is 'json'; set it to cloudwatch" in sentence
    with pytest.raises(ValueError, match="logRetentionDays"):
        stack(L4, observability={"logs": "cloudwatch", "logRetentionDays": 31})
