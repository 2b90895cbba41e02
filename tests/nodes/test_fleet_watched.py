"""A Prometheus and an Alertmanager of the stack's own, in their pod: what they read, who hears of it, who may ask."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from modelfleet.infra.kubernetes.forward import get
from modelfleet.infra.kubernetes.manifests.own_monitoring import ALERTMANAGER_PORT, NOBODY, PROMETHEUS_PORT
from modelfleet.infra.kubernetes.names import MONITOR
from modelfleet.infra.observability import rule_groups
from modelfleet.infra.observability.scrape import PODS
from tests.nodes.fleet import MODEL, WEBHOOK, NodesFleet
from tests.nodes.pods import Pods
from tests.nodes.volumes import folder_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ALERT = "ModelfleetSlowFirstToken"


def monitor(fleet: NodesFleet) -> dict[str, Any]:
    """The one pod."""
    (pod,) = fleet.cluster.api.list("v1", "Pod", fleet.namespace, f"app.kubernetes.io/name={MONITOR}")
    return pod


def asked(fleet: NodesFleet, path: str) -> Any:
    """What Prometheus' own API answers."""
    name = monitor(fleet)["metadata"]["name"]
    answer = json.loads(get(fleet.cluster.api, fleet.namespace, name, PROMETHEUS_PORT, f"/api/v1/{path}", 10))
    assert answer["status"] == "success", answer
    return answer["data"]


def rules(fleet: NodesFleet) -> list[dict[str, Any]]:
    return [rule for group in asked(fleet, "rules")["groups"] for rule in group["rules"]]


def test_every_pod_with_metrics_is_scraped_and_nothing_else(fleet: NodesFleet) -> None:
    """Ray's head and workers, and both processes of each gateway pod."""

    def expected() -> dict[tuple[str, str], str]:
        found = {}
        for kind, (label, value, ends) in PODS.items():
            for pod in fleet.cluster.api.list("v1", "Pod", fleet.namespace, f"{label}={value}"):
                for number, _ in enumerate(ends):
                    found[f"{kind}-{number}", pod["metadata"]["name"]] = "up"
        return found

    def seen() -> dict[tuple[str, str], str]:
        targets = asked(fleet, "targets?state=active")["activeTargets"]
        return {(one["labels"]["job"], one["labels"]["pod"]): one["health"] for one in targets}

    assert len(expected()) == 3 + 2 * 3
    wait_until(lambda: seen() == expected(), what="all targets are up", seconds=60, every_s=1)


def test_its_rules_are_the_plans_and_each_can_be_evaluated(fleet: NodesFleet) -> None:
    def named(rule: dict[str, Any]) -> str:
        return str(rule.get("name") or rule.get("alert") or rule["record"])

    wanted = sorted(named(rule) for group in rule_groups(fleet.plan)["groups"] for rule in group["rules"])
    wait_until(lambda: {one["health"] for one in rules(fleet)} == {"ok"}, what="each was evaluated", seconds=60)
    found = rules(fleet)
    assert sorted(map(named, found)) == wanted
    assert [one["lastError"] for one in found if "lastError" in one] == []


def test_what_alerts_ask_of_ray_and_the_gateway_is_there(fleet: NodesFleet) -> None:
    """Both would be pending without series that have the labels by which their expressions choose."""
    states = lambda: {one["name"]: one.get("state") for one in rules(fleet) if one["name"].endswith("Unseen")}  # noqa: E731
    seen = {"ModelfleetRayUnseen": "inactive", "ModelfleetGatewayUnseen": "inactive"}
    wait_until(lambda: states() == seen, what="neither is unseen", seconds=60, every_s=1)


@pytest.fixture
def visitors(fleet: NodesFleet, pods: Pods) -> Iterator[dict[str, str]]:
    """Pods that ask Prometheus and Alertmanager again and again, by where they are: in a scraper's namespace or not.

    The namespace `monitoring` may read metrics by default.
    """
    api, space = fleet.cluster.api, "monitoring"
    host = f"{MONITOR}.{fleet.namespace}.svc.cluster.local"
    urls = [f"http://{host}:{port}/-/ready" for port in (PROMETHEUS_PORT, ALERTMANAGER_PORT)]
    ask = "; ".join(f"curl -s -o /dev/null --max-time 2 -w '%{{http_code}} ' {url}" for url in urls)
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}})
    places = {"scraper": Pods(fleet.cluster, space), "stranger": pods}
    for name, where in places.items():
        where.create(name, f"while true; do {ask}; echo; sleep 1; done")
    yield {name: where.namespace for name, where in places.items()}
    pods.delete("stranger")
    api.delete("v1", "Namespace", space)
    wait_until(lambda: api.get("v1", "Namespace", space) is None, what=f"namespace {space} is gone", seconds=60)


def test_who_may_read_metrics_may_ask_it_and_nobody_else(fleet: NodesFleet, visitors: dict[str, str]) -> None:
    def answers() -> dict[str, str]:
        lines = {name: Pods(fleet.cluster, space).log(name).splitlines() for name, space in visitors.items()}
        return {name: said[-2].strip() for name, said in lines.items() if len(said) > 1}

    wanted = {"scraper": "200 200", "stranger": "000 000"}
    wait_until(lambda: answers() == wanted, what="only the scraper is answered", seconds=60, every_s=1)


def test_an_alert_reaches_the_webhook_with_its_runbook(fleet: NodesFleet, pods: Pods) -> None:
    """The model's goal is one that no answer meets. It takes two scrapes that see answers, and Alertmanager's 30 s."""
    ask = fleet.question("What is the capital of France?")
    pods.create("asks-on", f"while true; do {ask} -o /dev/null; sleep 1; done")

    def told() -> dict[str, Any] | None:
        sent = [json.loads(line) for line in pods.log(WEBHOOK).splitlines()]
        alerts = [alert for one in sent for alert in one["alerts"] if alert["labels"]["alertname"] == ALERT]
        return next((one for one in alerts if one["labels"]["severity"] == "page"), None)

    try:
        alert = wait_until(told, what=f"{ALERT} at the webhook", seconds=180, every_s=1)
    finally:
        pods.delete("asks-on")
    assert (alert["status"], alert["labels"]["model"], alert["labels"]["stack"]) == ("firing", MODEL, fleet.stack)
    assert alert["annotations"]["runbook"] == f"modelfleet doctor {MODEL} --stack {fleet.stack}"


def test_both_write_into_the_volume_as_nobody(fleet: NodesFleet) -> None:
    folder = folder_of(fleet.cluster, "metrics")
    written = [folder / "prometheus" / "wal", folder / "alertmanager"]
    assert {one.stat().st_uid for one in written} == {NOBODY}


def test_a_new_pod_knows_what_the_last_one_saw(fleet: NodesFleet) -> None:
    """As after an edit of a rule, which changes the Deployment's template."""
    api, old = fleet.cluster.api, monitor(fleet)["metadata"]["name"]
    targets = len(asked(fleet, "targets?state=active")["activeTargets"])
    began = time.time()
    edit = {"template": {"metadata": {"annotations": {"tests.modelfleet.dev/began": str(began)}}}}
    api.merge("apps/v1", "Deployment", MONITOR, fleet.namespace, {"spec": edit})

    def seen() -> int:
        """How many targets were up before, as a new one says."""
        if monitor(fleet)["metadata"]["name"] == old:
            return 0
        result = asked(fleet, f"query?query=count(up==1)&time={began}")["result"]
        return int(result[0]["value"][1]) if result else -1

    before = wait_until(seen, what="a new pod answers", seconds=120, retry=(OSError, ValueError), every_s=1)
    print(f"a new pod of both answered after {time.time() - began:.0f} s")
    assert before == targets
