"""What an operator in the cluster watches the stack by: objects that find our pods, and are let in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from modelfleet.infra.kubernetes.api import Api
from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.observability import observability
from modelfleet.infra.kubernetes.preflight import missing_monitoring
from modelfleet.infra.observability import rule_groups
from modelfleet.infra.planning import Plan
from modelfleet.serving.config.errors import InputErrors, Severity
from tests.cluster.fleet import model, planned
from tests.unit.kubernetes.projects import L4

WATCH = {"metrics": "prometheus", "labels": {"release": "stack"}}
#: KubeRay sets these on every pod of Ray (ray-operator/controllers/ray/common/pod.go, labelPod).
BY_KUBERAY = {"ray.io/is-ray-node": "yes"}


def plan_of(root: Path, watch: dict[str, Any] | None = None, **keys: Any) -> Plan:
    keys = {**keys, **({"observability": watch} if watch else {})}
    return planned(root, [model("org/chat", "L4")], pools=[L4], **keys)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path, WATCH)


def test_nothing_is_made_where_nobody_watches(tmp_path: Path) -> None:
    """Without the operator's definitions the API server refuses them."""
    assert "monitoring.coreos.com" not in str(everything(plan_of(tmp_path)))


def pods(manifests: list[dict[str, Any]]) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Labels and spec of the pods of gateway and Ray."""
    for one in manifests:
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "gateway":
            template = one["spec"]["template"]
            yield template["metadata"]["labels"], template["spec"]
        if one["kind"] == "RayService":
            cluster = one["spec"]["rayClusterConfig"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                template = group["template"]
                yield {**template["metadata"]["labels"], **BY_KUBERAY}, template["spec"]


def test_every_monitor_finds_pods_with_its_ports_and_the_policies_let_it_in(plan: Plan) -> None:
    manifests = everything(plan)
    open_ports = {
        port["port"]
        for one in manifests
        if one["kind"] == "NetworkPolicy"
        for rule in one["spec"]["ingress"]
        if "monitoring" in str(rule)
        for port in rule["ports"]
    }
    monitors = [one for one in manifests if one["kind"] == "PodMonitor"]
    assert [one["metadata"]["name"] for one in monitors] == ["ray", "gateway"]
    for monitor in monitors:
        spec = monitor["spec"]
        assert spec["namespaceSelector"]["matchNames"] == [plan.namespace]
        chosen = spec["selector"]["matchLabels"].items()
        found = [pod for labels, pod in pods(manifests) if chosen <= labels.items()]
        assert found, monitor
        for pod in found:
            named = {port["name"]: port["containerPort"] for one in pod["containers"] for port in one["ports"]}
            for end in spec["podMetricsEndpoints"]:
                assert named[end["port"]] in open_ports


def test_the_operator_gets_the_rules_with_the_labels_by_which_it_chooses(plan: Plan) -> None:
    made = [one for one in observability(plan) if one["apiVersion"] == "monitoring.coreos.com/v1"]
    assert all(one["metadata"]["labels"]["release"] == "stack" for one in made)
    groups = [group for one in made if one["kind"] == "PrometheusRule" for group in one["spec"]["groups"]]
    assert groups == rule_groups(plan)["groups"]


def test_no_object_of_rules_grows_with_the_fleet(tmp_path: Path) -> None:
    """The operator refuses rules above 512 KiB, which 27 models with three goals have together."""

    def largest(*names: str) -> int:
        models = [model(name, "L4") for name in names]
        for one in models:
            one["deployment_config"]["slo"] = {"ttft_p95_ms": 8000, "tpot_p95_ms": 800, "availability": 0.999}
        folder = tmp_path / str(len(names))
        made = observability(planned(folder, models, pools=[{**L4, "maxNodes": 9}], observability=WATCH))
        rules = [one for one in made if one["kind"] == "PrometheusRule"]
        assert len({one["metadata"]["name"] for one in rules}) == len(rules)
        return max(len(json.dumps(one)) for one in rules)

    assert largest("org/a", "org/b", "org/c") == largest("org/a")


def test_dashboards_are_config_maps_that_kubernetes_takes(tmp_path: Path, plan: Plan) -> None:
    maps = [one for one in observability(plan) if one["kind"] == "ConfigMap"]
    assert len(maps) == len({one["metadata"]["name"] for one in maps}) == 3
    for one in maps:
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", one["metadata"]["name"])
        ((key, text),) = one["data"].items()
        assert re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key) and json.loads(text)["panels"] and len(text) < 1 << 20
    without = plan_of(tmp_path / "without", {**WATCH, "dashboardLabels": {}})
    assert not [one for one in observability(without) if one["kind"] == "ConfigMap"]


class Definitions:
    """An API server that has these definitions."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def get(self, _version: str, _kind: str, name: str) -> dict[str, Any] | None:
        return {} if name in self.names else None


def test_a_cluster_without_the_operator_is_refused_before_anything_is_made(tmp_path: Path, plan: Plan) -> None:
    both = ("podmonitors.monitoring.coreos.com", "prometheusrules.monitoring.coreos.com")
    assert missing_monitoring(cast(Api, Definitions(*both)), plan) == []
    assert missing_monitoring(cast(Api, Definitions()), plan_of(tmp_path / "nobody")) == []
    (said,) = missing_monitoring(cast(Api, Definitions(both[0])), plan)
    assert both[1] in said and both[0] not in said and "modelfleet:observability.metrics" in said


def test_an_operator_that_may_read_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputErrors, match="nobody may read the metrics"):
        plan_of(tmp_path, WATCH, kubernetes={"scrapers": [], "image": "registry.example/serving:1"})


def test_a_new_cluster_gets_a_notice_for_it_has_no_operator_yet(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, WATCH, target="eks")
    (found,) = [one for one in plan.notices if "observability" in one.path]
    assert found.severity is Severity.NOTICE and "without this key" in found.message
