"""A Prometheus and an Alertmanager of the stack's own: files that the real ones take, and pods that they find."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest
import yaml

from modelfleet.infra.aws.addons import AFTER_NODES, VOLUMES, after_nodes
from modelfleet.infra.aws.addons import STATES as STATES_ADDON
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.kubernetes.api import Api
from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.everything import with_secrets
from modelfleet.infra.kubernetes.manifests.network import network_policies
from modelfleet.infra.kubernetes.manifests.own_monitoring import ALERTMANAGER_SIZE, PROMETHEUS_SIZE, own_monitoring
from modelfleet.infra.kubernetes.preflight import DEFAULT_CLASS, missing_storage
from modelfleet.infra.observability import rule_groups
from modelfleet.infra.observability.rules import ALERTS
from modelfleet.infra.observability.scrape import STATES as STATES_KEPT
from modelfleet.infra.observability.scrape import pod_scrape_configs
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.monitoring import webhook_refused
from modelfleet.infra.stack.target import TARGETS
from modelfleet.serving.config.errors import InputErrors
from tests.cluster.fleet import model, planned
from tests.unit.kubernetes.projects import L4
from tests.unit.kubernetes.test_observability_manifests import pods
from tests.unit.observability.models import series_of, watched, with_slo

HOOK = "http://hook.ops.svc:8080"
#: As Pulumi encrypts it.
SECRET = {"alertWebhook": {"secure": "v1:of:a-test"}}
STATES = "http://kube-state-metrics.states.svc:8080"
OWN = {"metrics": "own", "webhookService": HOOK}


def plan_of(
    root: Path, *, target: str = "kubernetes", secrets: Mapping[str, Any] = MappingProxyType(SECRET), **keys: Any
) -> Plan:
    more = {"kubernetes": {"apiCidrs": ["10.0.0.0/16"], "image": "registry.example/serving:1"}, **secrets}
    watch = {key: value for key, value in {**OWN, **keys}.items() if value is not None}
    return planned(root, [model("org/chat", "L4")], pools=[L4], target=target, observability=watch, **more)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path / "project")


def of_kind(plan: Plan, kind: str) -> list[dict[str, Any]]:
    return [one for one in own_monitoring(plan) if one["kind"] == kind]


def scraped(plan: Plan) -> list[dict[str, Any]]:
    (config,) = [one for one in of_kind(plan, "ConfigMap") if "prometheus.yml" in one["data"]]
    found: list[dict[str, Any]] = yaml.safe_load(config["data"]["prometheus.yml"])["scrape_configs"]
    return found


def written(plan: Plan, folder: Path) -> tuple[Path, Path]:
    """The files of the pod as its containers see them, but for where the rules are; Prometheus' and Alertmanager's.

    Debian builds Prometheus without Kubernetes, so what finds pods is left out: the test below reads it.
    """
    for one in of_kind(plan, "ConfigMap"):
        for name, text in one["data"].items():
            (folder / name).write_text(text.replace("/etc/modelfleet/rules/", f"{folder}/modelfleet"))
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    for scrape in config["scrape_configs"]:
        assert scrape.pop("kubernetes_sd_configs")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return folder / "prometheus.yml", folder / "alertmanager.yml"


def test_the_real_programs_take_their_files(promtool: Path, amtool: Path, plan: Plan, tmp_path: Path) -> None:
    prometheus, alertmanager = written(plan, tmp_path)
    for words in ([promtool, "check", "config", prometheus], [amtool, "check-config", alertmanager]):
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done
    said = subprocess.run([promtool, "check", "config", prometheus], capture_output=True, text=True).stdout
    assert said.count("rules found") == len(rule_groups(plan)["groups"]), said


def test_models_whose_long_names_begin_alike_keep_each_its_own_rules(tmp_path: Path) -> None:
    """The pod has all files in one folder, and the kubelet says nothing of two with one name."""
    models = [model(f"org/DeepSeek-R1-Distill-Qwen-{size}", "L4") for size in ("7B", "14B")]
    image = {"image": "registry.example/serving:1"}
    plan = planned(tmp_path, models, pools=[L4], kubernetes=image, observability=OWN, **SECRET)
    (pod,) = of_kind(plan, "Deployment")
    (folder,) = [
        one["projected"]["sources"] for one in pod["spec"]["template"]["spec"]["volumes"] if "projected" in one
    ]
    mounted = {one["configMap"]["name"] for one in folder}
    files = [name for one in of_kind(plan, "ConfigMap") if one["metadata"]["name"] in mounted for name in one["data"]]
    assert len(files) == len({*files}) == len(rule_groups(plan)["groups"]), files


def test_alerts_go_to_the_webhook_and_a_ticket_of_the_same_goal_is_held_back(
    amtool: Path, plan: Plan, tmp_path: Path
) -> None:
    _, alertmanager = written(plan, tmp_path)
    words = [amtool, "config", "routes", "test", f"--config.file={alertmanager}", "severity=page", "model=org/chat"]
    assert subprocess.run(words, capture_output=True, text=True).stdout.strip() == "everybody"
    (receiver,) = yaml.safe_load(alertmanager.read_text())["receivers"]
    (hook,) = receiver["webhook_configs"]
    assert hook == {"url_file": "/etc/modelfleet/webhook/webhook", "send_resolved": True}


def test_the_url_of_the_webhook_is_a_secret_that_alertmanager_alone_reads(plan: Plan, tmp_path: Path) -> None:
    (made,) = [one for one in with_secrets(plan, secrets=()) if one["metadata"]["name"] == "alert-webhook"]
    assert made["kind"] == "Secret" and [*made["stringData"]] == ["webhook"]
    (pod,) = of_kind(plan, "Deployment")
    spec = pod["spec"]["template"]["spec"]
    (volume,) = [one for one in spec["volumes"] if one["name"] == "webhook"]
    assert volume["secret"]["secretName"] == made["metadata"]["name"]
    mounts = {one["name"]: [mount["mountPath"] for mount in one["volumeMounts"]] for one in spec["containers"]}
    assert "/etc/modelfleet/webhook" in mounts["alertmanager"] and "/etc/modelfleet/webhook" not in mounts["prometheus"]
    silent = plan_of(tmp_path / "silent", secrets={}, webhookService=None)
    assert "webhook" not in str([*own_monitoring(silent), *with_secrets(silent, secrets=())]).lower().replace(
        "webhooks", ""
    )


@pytest.mark.parametrize(
    ("url", "service", "refused"),
    [
        ("https://hooks.example.org/T0/B1?token=x%20y", None, None),
        ("https://hooks.example.org:443/x", None, None),
        ("http://hook.ops.svc:8080/t0ken", HOOK, None),
        ("http://hook.ops.svc.cluster.local:8080/t0ken", HOOK, None),
        ("http://hook.ops.svc:8080/t0ken", None, "at no public address at port 443.*webhookService"),
        ("http://hooks.example.org/t0ken", None, "at no public address at port 443"),
        ("https://10.0.0.9/t0ken", None, "at no public address at port 443"),
        ("https://hook/t0ken", None, "at no public address at port 443"),
        ("https://8.8.8.8/t0ken", None, None),
        ("https://hooks.example.org/t0ken", HOOK, f"is not at {HOOK}, which"),
        ("http://hook.ops.svc:9090/t0ken", HOOK, f"is not at {HOOK}, which"),
        ("http://other.net.svc:8080/t0ken", HOOK, f"is not at {HOOK}, which"),
        ("t0ken", None, "is no http:// or https:// URL"),
        ("https://hooks.example.org/{{ t0ken }}", None, "is no http:// or https:// URL"),
        ("https://user:t0ken@hooks.example.org/", None, "is no http:// or https:// URL"),
        ("https://hooks.example.org:99999/t0ken", None, "is no http:// or https:// URL"),
    ],
)
def test_a_url_that_the_policies_keep_alerts_from_stops_the_run_and_is_not_shown(
    url: str, service: str | None, refused: str | None, tmp_path: Path
) -> None:
    """The plan has no secret, so the run compares it with what the plan lets out."""
    plan = plan_of(tmp_path, webhookService=service)
    said = webhook_refused(url, plan)
    assert bool(said) == bool(refused) and "t0ken" not in str(said)
    assert re.search(refused or "", said or "")
    here = replace(plan, target=TARGETS["local"])
    assert (webhook_refused(url, here) is None) is (refused is None or "is no " not in refused)


def test_every_scrape_finds_pods_with_its_port_and_the_policies_let_it_in_and_out(plan: Plan) -> None:
    manifests = everything(plan)
    policies = {one["metadata"]["name"]: one["spec"] for one in manifests if one["kind"] == "NetworkPolicy"}
    own = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "monitor"}}}
    let_in = {
        name: {port["port"] for rule in spec["ingress"] if own in rule.get("from", []) for port in rule["ports"]}
        for name, spec in policies.items()
    }
    let_out = {
        port["port"] for rule in policies["monitor"]["egress"] if "podSelector" in str(rule) for port in rule["ports"]
    }
    for scrape in pod_scrape_configs(plan.namespace):
        (found,) = scrape["kubernetes_sd_configs"]
        assert found["namespaces"] == {"names": [plan.namespace]}
        (chosen,) = found["selectors"]
        key, value = chosen["label"].split("=")
        kept = scrape["relabel_configs"][0]["regex"]
        ports = {
            port["containerPort"]
            for labels, pod in pods(manifests)
            if labels.get(key) == value
            for container in pod["containers"]
            for port in container["ports"]
            if port["name"] == kept
        }
        assert ports, scrape
        assert ports <= let_in["gateway" if value == "gateway" else "ray"] and ports <= let_out


def test_of_kube_state_metrics_all_that_alerts_ask_for_is_kept_with_its_own_labels(
    promtool: Path, plan: Plan, tmp_path: Path
) -> None:
    rows = yaml.safe_load(ALERTS.read_text())["stack"]
    asked = {name for row in rows if row.get("from") == "kube-state-metrics" for name in series_of(row["expr"])}
    assert asked == set(STATES_KEPT)
    watched = plan_of(tmp_path / "watched", kubeStateMetrics=STATES)
    *_, states = scraped(watched)
    # Without `honor_labels` the namespace would be that of kube-state-metrics, and no mirror Job would be found.
    assert states["honor_labels"] and states["static_configs"] == [{"targets": ["kube-state-metrics.states.svc:8080"]}]
    (tmp_path / "states.yml").write_text(yaml.safe_dump({"scrape_configs": [states]}))
    done = subprocess.run([promtool, "check", "config", tmp_path / "states.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done
    out = "'kubernetes.io/metadata.name': 'states'"
    assert out in str(network_policies(watched)) and out not in str(network_policies(plan))


def test_alerts_reach_a_service_of_the_cluster_and_nothing_else(plan: Plan, tmp_path: Path) -> None:
    def out(plan: Plan) -> str:
        (policy,) = [
            one for one in everything(plan) if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "monitor"
        ]
        return str(policy["spec"]["egress"])

    assert "'kubernetes.io/metadata.name': 'ops'" in out(plan) and "0.0.0.0/0" not in out(plan)
    outside = plan_of(tmp_path / "outside", webhookService=None)
    assert "0.0.0.0/0" in out(outside) and "'ops'" not in out(outside)


def test_the_pod_starts_anew_when_a_rule_changes_and_not_otherwise(plan: Plan, tmp_path: Path) -> None:
    def content(plan: Plan) -> str:
        (pod,) = of_kind(plan, "Deployment")
        return str(pod["spec"]["template"]["metadata"]["annotations"])

    assert content(plan) == content(plan_of(tmp_path / "same", volumeGib=40))
    assert content(plan) != content(plan_of(tmp_path / "another", secrets={}, webhookService=None))


def test_metrics_leave_room_in_the_volume_and_the_volume_has_a_price_on_eks(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, target="eks", volumeGib=50, retentionDays=30)
    (claim,), (kind,) = of_kind(plan, "PersistentVolumeClaim"), of_kind(plan, "StorageClass")
    assert claim["spec"]["resources"]["requests"]["storage"] == "50Gi"
    assert claim["spec"]["storageClassName"] == kind["metadata"]["name"]
    assert (kind["provisioner"], kind["parameters"]["type"]) == ("ebs.csi.aws.com", "gp3")
    (pod,) = of_kind(plan, "Deployment")
    words = pod["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--storage.tsdb.retention.time=30d" in words and "--storage.tsdb.retention.size=40960MB" in words
    assert after_nodes(plan) == (*AFTER_NODES, VOLUMES, STATES_ADDON)
    assert "'targets': ['kube-state-metrics.kube-state-metrics.svc:8080']" in str(scraped(plan))
    own = plan_of(tmp_path / "own", target="eks", kubeStateMetrics=STATES)
    assert after_nodes(own) == (*AFTER_NODES, VOLUMES) and "svc:8080" in str(scraped(own))
    in_virginia = watched(with_slo({"availability": 0.99}), observability={"metrics": "own", "volumeGib": 50})
    (priced,) = [one for one in in_virginia.fixed if "metrics" in one.name]
    assert priced.count == 50 and priced.usd_per_hour == pytest.approx(50 * 0.08 / 730, rel=0.01)


def test_a_cluster_of_others_makes_the_volume_by_its_own_class_and_no_driver_is_added(tmp_path: Path) -> None:
    named = plan_of(tmp_path / "named", storageClass="fast")
    assert of_kind(named, "StorageClass") == []
    assert of_kind(named, "PersistentVolumeClaim")[0]["spec"]["storageClassName"] == "fast"
    unnamed = plan_of(tmp_path / "unnamed")
    assert "storageClassName" not in of_kind(unnamed, "PersistentVolumeClaim")[0]["spec"]
    nobody = planned(tmp_path / "nobody", [model("org/chat", "L4")], pools=[L4], target="eks")
    assert after_nodes(nobody) == AFTER_NODES and own_monitoring(nobody) == []


def test_what_the_pod_requests_is_what_the_system_pool_is_sized_for(plan: Plan) -> None:
    (row,) = [one for one in default_catalog().system_pods if one.name == "monitor"]
    sizes = [PROMETHEUS_SIZE, ALERTMANAGER_SIZE]
    assert row.cpu_millis == sum(int(cpu.removesuffix("m")) for cpu, _ in sizes)
    assert row.memory_mib == 1024 + 128 and [memory for _, memory in sizes] == ["1Gi", "128Mi"]


class Classes:
    """An API server with these StorageClasses; the second value is whether it is the default."""

    def __init__(self, **found: bool) -> None:
        self.found = found

    def list(self, _version: str, _kind: str) -> list[dict[str, Any]]:
        return [
            {"metadata": {"name": name, "annotations": {DEFAULT_CLASS: str(default).lower()}}}
            for name, default in self.found.items()
        ]


def test_a_cluster_that_would_make_no_volume_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    unnamed, named = plan_of(tmp_path / "unnamed"), plan_of(tmp_path / "named", storageClass="fast")
    assert missing_storage(cast(Api, Classes(fast=True)), unnamed) == []
    assert missing_storage(cast(Api, Classes(fast=False)), named) == []
    (said,) = missing_storage(cast(Api, Classes(slow=False)), unnamed)
    assert "no default StorageClass" in said and "slow" in said and "observability.storageClass" in said
    (said,) = missing_storage(cast(Api, Classes(slow=True)), named)
    assert "has no fast" in said and "slow" in said


@pytest.mark.parametrize(
    ("watch", "said"),
    [
        ({"metrics": "none", "retentionDays": 9}, "retentionDays: is for a Prometheus of the stack's own"),
        ({"metrics": "prometheus", "webhookService": HOOK}, "webhookService: is for a Prometheus of the stack's own"),
        (OWN, "webhookService: has no URL; set it: `pulumi config set --secret modelfleet:alertWebhook --stack dev`"),
        (
            {**OWN, "kubeStateMetrics": "http://10.0.0.9:8080"},
            "kubeStateMetrics: found 'http://10.0.0.9:8080'",
        ),
        ({**OWN, "webhookService": "http://hook.ops.svc:80800"}, "webhookService: found 'http://hook.ops.svc:80800'"),
        ({**OWN, "kubeStateMetrics": "http://a.b.svc:65536"}, "kubeStateMetrics: found 'http://a.b.svc:65536'"),
        ({"traces": {"otlp": "http://c.t.svc:99999"}}, "otlp: found 'http://c.t.svc:99999'"),
    ],
)
def test_what_cannot_be_is_said_with_its_key(tmp_path: Path, watch: dict[str, Any], said: str) -> None:
    with pytest.raises(InputErrors, match=said):
        planned(tmp_path, [model("org/chat", "L4")], pools=[L4], observability=watch)


def test_a_webhook_that_nobody_sends_to_is_said_and_one_in_plain_text_is_refused(tmp_path: Path) -> None:
    for name, keys, said in (
        ("none", SECRET, "modelfleet:alertWebhook: is where own or amp sends alerts, and metrics is 'none'"),
        (
            "plain",
            {"alertWebhook": "https://hooks.example.org/t0ken", "observability": {"metrics": "own"}},
            "is in plain text",
        ),
        ("here", {**SECRET, "observability": OWN, "target": "local"}, "webhookService: found '.*there is no cluster"),
    ):
        cpu = {"pools": [{"name": "cpu", "accelerator": "CPU", "maxNodes": 1}]} if name == "here" else {"pools": [L4]}
        with pytest.raises(InputErrors, match=said) as refused:
            planned(tmp_path / name, [model("org/chat", "CPU" if name == "here" else "L4")], **cpu, **keys)
        assert "t0ken" not in str(refused.value)


def test_ports_of_a_prometheus_that_no_stack_runs_take_nobodys_place(tmp_path: Path) -> None:
    cpu = [{"name": "cpu", "accelerator": "CPU", "maxNodes": 1}]
    ports = {"gatewayPort": 8005}

    def local(name: str, watch: dict[str, Any]) -> Plan:
        models = [model("org/chat", "CPU")]
        return planned(tmp_path / name, models, pools=cpu, target="local", local=ports, observability=watch)

    assert local("none", {}).own_monitoring is None
    with pytest.raises(InputErrors, match="prometheusPort: found 8005, which gatewayPort has too"):
        local("own", {"metrics": "own"})
