"""Amazon Managed Prometheus: what its scraper, its ruler and its alert manager get, and what it costs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml

from modelfleet.infra.aws.addons import AFTER_NODES, after_nodes
from modelfleet.infra.aws.addons import STATES as STATES_ADDON
from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.gateway import BODIES_METRICS_PORT
from modelfleet.infra.kubernetes.manifests.network import network_policies
from modelfleet.infra.kubernetes.names import GATEWAY_METRICS_PORT, RAY_METRICS_PORT
from modelfleet.infra.observability.amp import (
    alert_manager_definition,
    asked_series,
    rules_file,
    scraper_config,
)
from modelfleet.infra.observability.scrape import pod_scrape_configs
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.cost import SERIES_OF_NODE
from modelfleet.infra.planning.monitoring import webhook_refused
from modelfleet.infra.planning.network import subnet_blocks
from modelfleet.infra.provider.sdk import SECRET_SIGNATURE, SIGNATURE_KEY
from modelfleet.infra.targets import Given, build
from modelfleet.serving.config.errors import InputErrors, SetupError
from tests.cluster.fleet import model, planned
from tests.unit.aws.builders import facts
from tests.unit.kubernetes.projects import L4
from tests.unit.kubernetes.test_manifests_command import registered
from tests.unit.observability.models import SCRAPES, scraped_names, watched, with_slo

TOPIC = "arn:aws:sns:us-east-1:123456789012:dev-prometheus-alerts-1a2b3c4"
AMP = {"metrics": "amp"}
#: By which a receiver knows who sends, and that the stack file has it, as Pulumi encrypts it.
TOKEN = "t0ken-of-a-test"
HOOKED: dict[str, Any] = {"secrets": {"alertWebhook": {"secure": "v1:of:a-test"}}}


def plan_of(
    root: Path,
    *,
    target: str = "eks",
    network: dict[str, Any] | None = None,
    secrets: dict[str, Any] | None = None,
    **watch: Any,
) -> Plan:
    more: dict[str, Any] = {**({"network": network} if network else {}), **(secrets or {})}
    return planned(root, [model("org/chat", "L4")], pools=[L4], target=target, observability={**AMP, **watch}, **more)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path / "project")


def jobs(plan: Plan) -> dict[str, dict[str, Any]]:
    return {job["job_name"]: job for job in yaml.safe_load(scraper_config(plan))["scrape_configs"]}


def test_the_scraper_finds_what_a_prometheus_in_the_cluster_finds_and_asks_no_service_by_name(plan: Plan) -> None:
    found = jobs(plan)
    states = found.pop("kube-state-metrics")
    for job in pod_scrape_configs(plan.namespace):
        ours = found.pop(job["job_name"])
        assert ours.pop("metric_relabel_configs")
        assert ours == job
    assert found == {} and "static_configs" not in states
    assert states["kubernetes_sd_configs"][0]["namespaces"] == {"names": ["kube-state-metrics"]}
    assert yaml.safe_load(scraper_config(plan))["global"] == {"scrape_interval": "30s"}, "AWS takes no less"


def test_every_series_that_a_rule_or_a_panel_asks_for_is_kept_and_no_other() -> None:
    plan = watched(with_slo({"ttft_p95_ms": 800, "tpot_p95_ms": 50, "availability": 0.99}), observability=AMP)
    (regex,) = {
        job["metric_relabel_configs"][0]["regex"] for name, job in jobs(plan).items() if name != "kube-state-metrics"
    }
    assert scraped_names(plan) <= asked_series(plan)
    assert all(re.fullmatch(regex, name) for name in scraped_names(plan))
    assert not re.fullmatch(regex, "ray_node_cpu_utilization")
    kube = jobs(plan)["kube-state-metrics"]["metric_relabel_configs"][0]["regex"]
    assert re.fullmatch(kube, "kube_job_status_failed") and not re.fullmatch(kube, "kube_pod_info")


def test_the_scrapers_interfaces_read_metrics_and_nothing_else(plan: Plan, tmp_path: Path) -> None:
    blocks = subnet_blocks("10.0.0.0/16", 3).private
    sources = [{"ipBlock": {"cidr": block}} for block in blocks]
    policies = {one["metadata"]["name"]: one["spec"] for one in network_policies(plan)}
    let_in = {
        name: [port["port"] for rule in spec["ingress"] if rule.get("from") == sources for port in rule["ports"]]
        for name, spec in policies.items()
    }
    assert {name: ports for name, ports in let_in.items() if ports} == {
        "ray": [RAY_METRICS_PORT],
        "gateway": [GATEWAY_METRICS_PORT, BODIES_METRICS_PORT],
    }
    named = {"vpcId": "vpc-0123456789abcdef0", "privateSubnetIds": ["subnet-1", "subnet-2"]}
    existing = plan_of(tmp_path / "existing", network=named).amp
    assert existing is not None and existing.networks[0] == "10.0.0.0/8"
    assert "monitoring.coreos.com" not in str(everything(plan)) and after_nodes(plan) == (*AFTER_NODES, STATES_ADDON)


def test_the_real_promtool_takes_the_rules(promtool: Path, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(rules_file(plan))
    done = subprocess.run([promtool, "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done


def test_the_real_amtool_takes_the_definition_and_sends_all_to_the_topic(
    amtool: Path, plan: Plan, tmp_path: Path
) -> None:
    (text,) = yaml.safe_load(alert_manager_definition(plan, TOPIC)).values()
    (tmp_path / "alertmanager.yml").write_text(text)
    config = f"--config.file={tmp_path / 'alertmanager.yml'}"
    checked = subprocess.run([amtool, "check-config", tmp_path / "alertmanager.yml"], capture_output=True, text=True)
    assert checked.returncode == 0, checked
    words: list[str | Path] = [amtool, "config", "routes", "test", config, "severity=ticket", "model=org/chat"]
    assert subprocess.run(words, capture_output=True, text=True).stdout.strip() == "everybody"
    (receiver,) = yaml.safe_load(text)["receivers"]
    (sns,) = receiver["sns_configs"]
    assert (sns["topic_arn"], sns["sigv4"], sns["send_resolved"]) == (TOPIC, {"region": plan.region}, True)


def test_the_plan_has_the_price_of_the_scraper_and_of_the_series_at_the_most_nodes() -> None:
    plan = watched(with_slo(None), target="eks", observability=AMP)
    prices = {part.name: part for part in plan.fixed if "metrics" in part.name}
    assert prices["scraper of metrics"].usd_per_hour == pytest.approx(29.2 / 730)
    series = prices["series of metrics"]
    (pool,) = plan.pools
    assert series.count == SERIES_OF_NODE * (1 + min(pool.needed_nodes, pool.max_nodes))
    a_month = series.count * 120 * 730 * 0.93 / 10_000_000
    assert series.usd_per_hour == pytest.approx(a_month / 730)
    without = watched(with_slo(None), target="eks")
    assert plan.cost.max_usd_per_hour == pytest.approx(
        (without.cost.max_usd_per_hour or 0) + 0.04 + (series.usd_per_hour or 0)
    )


def test_a_node_has_as_many_series_as_a_live_stacks_scrape() -> None:
    lines = (SCRAPES / "ray.txt").read_text().splitlines()
    assert len(lines) == SERIES_OF_NODE, "and its source and date in infra/planning/cost.py"


@pytest.mark.parametrize(
    ("target", "watch", "said"),
    [
        ("kubernetes", {}, "metrics: found 'amp', which watches the cluster of target eks alone; say own, or"),
        ("eks", {"metrics": "own", "alertEmails": ["a@b.org"]}, "alertEmails: is for Amazon Managed Service"),
        ("eks", {"retentionDays": 9}, "retentionDays: is for a Prometheus of the stack's own"),
        ("eks", {"alertEmails": ["a@b.org", "a@b.org"]}, "found 'a@b.org' twice"),
        ("eks", {"webhookService": "http://b.ops.svc:80"}, "webhookService: is for a Prometheus of the stack's own"),
        ("eks", {"alertEmails": ["nobody"]}, "found 'nobody'"),
    ],
)
def test_what_cannot_be_is_said_with_its_key(tmp_path: Path, target: str, watch: dict[str, Any], said: str) -> None:
    with pytest.raises(InputErrors, match=said):
        plan_of(tmp_path, target=target, **watch)


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        (f"https://pager.example.org/v1?key={TOKEN}", None),
        (f"https://pager.example.org:8443/{TOKEN}", None),
        (f"http://pager.example.org/{TOKEN}", "is no public https:// address, and with metrics 'amp' SNS sends there"),
        (f"https://alerts.ops.svc/{TOKEN}", "reaches no Service of the cluster"),
        (f"https://10.0.0.9/{TOKEN}", "is no public https:// address"),
        (f"https://alerts.ops.svc.cluster.local/{TOKEN}", "reaches no Service of the cluster"),
        (TOKEN, "is no http:// or https:// URL"),
    ],
)
def test_what_sns_cannot_reach_or_would_send_unencrypted_is_refused_and_not_shown(
    tmp_path: Path, url: str, refused: str | None
) -> None:
    said = webhook_refused(url, plan_of(tmp_path, **HOOKED))
    assert bool(said) == bool(refused) and (refused or "") in (said or "") and TOKEN not in (said or "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pulumi_aws warns about its own old classes
def test_the_secret_url_is_one_subscription_beside_those_of_mail_addresses_and_nothing_of_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelfleet.infra.aws import fleet as cloud
    from modelfleet.infra.kubernetes import fleet

    plan, url = plan_of(tmp_path, **HOOKED, alertEmails=["a@b.org"]), f"https://pager.example.org/{TOKEN}"
    types = {one for pool in plan.pools for one in pool.instance_types} | {"m7i.xlarge"}
    account = facts(offerings={one: frozenset(facts().zones) for one in types})
    monkeypatch.setattr(cloud, "read_facts", lambda plan, parent: account)
    monkeypatch.setattr(cloud, "preflight", lambda plan, facts: [])
    monkeypatch.setattr(fleet, "_say_rebuild", lambda text, plan: None)
    with pytest.raises(SetupError, match=r"modelfleet:alertWebhook is set, and the program does not hand it over"):
        build(tmp_path, plan, Given(api_keys={"team": "k" * 16}))
    made = registered(lambda: build(tmp_path, plan, Given(api_keys={"team": "k" * 16}, alert_webhook=url)))
    told = [inputs for kind, inputs in made if kind == "aws:sns/topicSubscription:TopicSubscription"]
    (mail, hook) = sorted(told, key=lambda inputs: str(inputs["protocol"]))
    assert (mail["protocol"], mail["endpoint"]) == ("email", "a@b.org")
    assert hook["protocol"] == "https"
    assert hook["endpoint"] == {SIGNATURE_KEY: SECRET_SIGNATURE, "value": url}, "so the state has it encrypted"
    assert [kind for kind, inputs in made if TOKEN in str(inputs)] == ["aws:sns/topicSubscription:TopicSubscription"]
    (scraper,) = [inputs for kind, inputs in made if kind == "aws:amp/scraper:Scraper"]
    assert scraper["timeouts"] == {"update": "20m"}
    refused = Given(api_keys={"team": "k" * 16}, alert_webhook=f"http://pager.example.org/{TOKEN}")
    with pytest.raises(pulumi.RunError, match="is no public https://") as said:
        registered(lambda: build(tmp_path, plan, refused))
    assert TOKEN not in str(said.value)
