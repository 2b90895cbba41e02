"""`plan --diff` shows each changed key of a stack file, and warns of those that make KubeRay rebuild the cluster."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel

from modelfleet.cli.plan_diff import (
    ELSEWHERE,
    Change,
    Difference,
    as_markdown,
    changes,
    rebuild_warnings,
    roll_warnings,
)
from modelfleet.infra.kubernetes.manifests.ray import cluster_parts
from modelfleet.infra.planning import Plan
from modelfleet.infra.stack import StackConfig
from tests.unit.planning.builders import model, planned, stack

L4 = {"name": "l4", "accelerator": "L4", "instanceTypes": ["g6.2xlarge"], "maxNodes": 8}
A100 = {"name": "a100", "accelerator": "A100-40G", "instanceTypes": ["p4d.24xlarge"], "maxNodes": 1}
BASE: dict[str, Any] = {"target": "kubernetes", "pools": [L4, A100]}
NODE = {"cpus": 16, "memoryGib": 64, "gpus": 1}

KMS = "arn:aws:kms:us-east-1:111122223333:key/"
PUBLIC_KEY = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEIB==\n-----END PUBLIC KEY-----\n"
#: What a key and a team may have.
ALLOWANCE = {
    "models": ["*"],
    "requestsPerMinute": 60,
    "tokensPerMinute": 1000,
    "concurrentRequests": 8,
    "budget.tokens": {"tokens": 1000},
    "budget.usd": {"usd": 2.5},
    "budget.per": {"tokens": 1000, "per": "day"},
    "tags": {"centre": "42"},
}
JWT = {"issuer": "https://login.example.org/", "audience": "models", "jwks": "https://login.example.org/keys"}
#: The new value by key. A key of a pool changes in the first pool.
CHANGES: dict[str, Any] = {
    "models": ["others-*"],
    "target": "eks",
    "pools.name": "large",
    "pools.accelerator": "T4",
    "pools.purchase": "spot",
    "pools.instanceTypes": ["g6.4xlarge"],
    "pools.fallback.accelerator": [{"accelerator": "A10G", "instanceTypes": ["g5.2xlarge"]}],
    "pools.fallback.instanceTypes": [{"accelerator": "A10G", "instanceTypes": ["g5.2xlarge", "g5.xlarge"]}],
    "pools.fallback.purchase": [{"accelerator": "A10G", "instanceTypes": ["g5.2xlarge"], "purchase": "spot"}],
    "pools.returnAfterMinutes": 15,
    "pools.sealedCaches": True,
    "pools.node.cpus": {**NODE, "cpus": 32},
    "pools.node.memoryGib": {**NODE, "memoryGib": 128},
    "pools.node.gpus": {**NODE, "gpus": 4},
    "pools.reserve.cpuMillis": {"cpuMillis": 500},
    "pools.reserve.memoryMib": {"memoryMib": 512},
    "pools.minNodes": 1,
    "pools.maxNodes": 9,
    "pools.zones": ["us-east-1a"],
    "pools.capacityReservationId": "cr-0123456789abcdef0",
    "pools.capacityReservationZone": "us-east-1a",
    "accountId": "999988887777",
    "network.cidr": "10.4.0.0/16",
    "network.zones": 2,
    "network.nat": "per-zone",
    "network.interfaceEndpoints": True,
    "network.vpcId": "vpc-0123456789abcdef0",
    "network.privateSubnetIds": ["subnet-1", "subnet-2"],
    "network.publicSubnetIds": ["subnet-3", "subnet-4"],
    "cluster.version": "1.36",
    "cluster.publicAccessCidrs": ["198.51.100.0/24"],
    "cluster.privateAccessCidrs": ["10.8.0.0/16"],
    "cluster.privateAccessSecurityGroupIds": ["sg-0123456789abcdef0"],
    "cluster.allowPublicAccessFromAnywhere": True,
    "cluster.adminRoleArns": ["arn:aws:iam::111122223333:role/admin"],
    "cluster.deletionProtection": True,
    "cluster.systemInstanceType": "m7i.2xlarge",
    "cluster.systemNodes": 3,
    "cluster.addonVersions": {"coredns": "v1.11.1-eksbuild.1"},
    "cluster.nodeRelease": "1.35.0-20261101",
    "kubernetes.kubeconfig": "/elsewhere",
    "kubernetes.context": "other",
    "kubernetes.namespace": "elsewhere",
    "kubernetes.createNamespace": False,
    "kubernetes.image": "registry.example/serving:2",
    "kubernetes.operatorNamespace": "kuberay-system",
    "kubernetes.mirrorNamespace": "copies",
    "kubernetes.scrapers.namespace": [{"namespace": "observability"}],
    "kubernetes.scrapers.podLabels": [{"podLabels": {"app.kubernetes.io/name": "prometheus"}}],
    "kubernetes.rollout": "replace",
    "kubernetes.headStorage": "none",
    "kubernetes.redisAddress": "redis:6379",
    "kubernetes.rayTls": True,
    "kubernetes.rayAuthority": 2,
    "mirror.create": False,
    "mirror.bucket": "another-bucket",
    "mirror.sources": {"org/model": "s3://elsewhere/model"},
    "mirror.image": "registry.example/mirror:1",
    "mirror.instanceType": "m7i.xlarge",
    "mirror.storageCidrs": ["10.8.0.0/24"],
    "budget.maxUsdPerHour": 1000,
    "schedule.timeZone": "Europe/Berlin",
    "schedule.entries.cron": [{"cron": "0 20 * * *"}],
    "schedule.entries.minReplicas": [{"cron": "0 20 * * *", "minReplicas": 0}],
    "schedule.entries.maxReplicas": [{"cron": "0 20 * * *", "maxReplicas": 1}],
    "licence.forbid": ["non-commercial"],
    "licence.forbidUnknown": True,
    "trust.foreignCode": ["org/model"],
    "gateway.requestsPerMinute": 60,
    "gateway.concurrentRequests": 8,
    "gateway.tokensPerMinute": 9000,
    "gateway.maxBodyMib": 32,
    "gateway.timeoutS": 7200,
    "gateway.replicas": 3,
    "gateway.expose": "internal",
    "gateway.hostname": "models.example.org",
    "gateway.certificate": "arn:aws:acm:us-east-1:123456789012:certificate/one",
    "gateway.zone": "example.org",
    "gateway.allowCidrs": ["10.0.0.0/8"],
    "gateway.ingressClass": "nginx",
    "gateway.ingressAnnotations": {"example.org/note": "one"},
    "gateway.gatewayClass": "envoy",
    "gateway.parentGateway": "infra/public/https",
    "gateway.tlsSecret": "tls",
    "gateway.webAcl": "arn:aws:wafv2:us-east-1:123456789012:regional/webacl/wall/0a1b",
    "observability.metrics": "prometheus",
    "observability.labels": {"release": "kube-prometheus-stack"},
    "observability.dashboardLabels": {"grafana": "yes"},
    "observability.retentionDays": 30,
    "observability.volumeGib": 40,
    "observability.storageClass": "fast",
    "observability.webhookService": "http://hook.ops.svc:8080",
    "observability.kubeStateMetrics": "http://kube-state-metrics.monitoring.svc:8080",
    "observability.alertEmails": ["pager@example.org"],
    "observability.logs": "json",
    "observability.logRetentionDays": 90,
    "observability.traces.otlp": {"otlp": "http://collector.tracing.svc:4318"},
    "local.gatewayPort": 9000,
    "local.servePort": 9001,
    "local.s3Port": 9002,
    "local.metricsPort": 9003,
    "local.rayMetricsPort": 9004,
    "local.dashboardPort": 9005,
    "local.gcsPort": 9006,
    "local.prometheusPort": 9007,
    "local.alertmanagerPort": 9008,
    "local.cpus": 4,
    "local.gpus": 2,
    "auth": "keys",
    "tags": {"team": "ml"},
    "imageRegistry": "mirror.example/all",
    "modelsAtOnce": 2,
    "kubernetes.apiCidrs": ["10.9.0.0/24"],
    "trust.manifestKey.kms": {"kms": f"{KMS}2", "publicKey": PUBLIC_KEY},
    "trust.manifestKey.publicKey": {"kms": f"{KMS}1", "publicKey": PUBLIC_KEY.replace("IB", "IC")},
    "trust.signers.weights": [{"weights": ["Qwen/*"], "publicKey": PUBLIC_KEY}],
    "trust.signers.publicKey": [{"weights": ["*"], "publicKey": PUBLIC_KEY}],
    "trust.signers.certificates": [{"weights": ["*"], "certificates": PUBLIC_KEY.replace("PUBLIC KEY", "CERTIFICATE")}],
    **{f"{section}.{name}": value for section in ("keys", "teams") for name, value in ALLOWANCE.items()},
    "jwt.issuer": JWT,
    "jwt.audience": {**JWT, "audience": "other"},
    "jwt.jwks": {**JWT, "jwks": "https://login.example.org/other"},
    "jwt.nameClaim": {**JWT, "nameClaim": "email"},
    "jwt.teamClaim": {**JWT, "teamClaim": "org.team"},
    "jwt.modelsClaim": {**JWT, "modelsClaim": "roles", "models": {"all": ["*"]}},
    "jwt.models": {**JWT, "modelsClaim": "roles", "models": {"none": ["*"]}},
    "keys.expires": "2030-12-31",
    "keys.team": "search",
}
#: A front door of a cluster that is not ours.
INGRESS = {"gateway.expose": "internal", "gateway.ingressClass": "nginx", "gateway.tlsSecret": "tls-before"}
#: Other keys that must be set to keep the file valid.
BESIDE: dict[str, dict[str, Any]] = {
    "pools.accelerator": {"pools.instanceTypes": ["g4dn.xlarge"]},
    "pools.capacityReservationId": {"pools.purchase": "capacity-block"},
    "pools.capacityReservationZone": {
        "pools.purchase": ["reservation", "spot", "on-demand"],
        "pools.capacityReservationId": "cr-0123456789abcdef0",
    },
    "pools.returnAfterMinutes": {"pools.purchase": ["spot", "on-demand"]},
    "network.vpcId": {"network.privateSubnetIds": ["subnet-1", "subnet-2"]},
    "network.privateSubnetIds": {"network.vpcId": "vpc-0123456789abcdef0"},
    "schedule.timeZone": {"schedule.entries": [{"cron": "0 20 * * *"}]},
    "schedule.entries.cron": {"schedule.timeZone": "UTC"},
    "schedule.entries.minReplicas": {"schedule.timeZone": "UTC"},
    "schedule.entries.maxReplicas": {"schedule.timeZone": "UTC"},
    "gateway.expose": {
        "gateway.ingressClass": "nginx",
        "gateway.hostname": "models.example.org",
        "gateway.tlsSecret": "t",
    },
    "gateway.hostname": INGRESS,
    "gateway.certificate": {"gateway.expose": "internal", "gateway.hostname": "models.example.org"},
    "gateway.zone": {"gateway.expose": "internal", "gateway.hostname": "models.example.org"},
    "gateway.allowCidrs": {"gateway.expose": "internal"},
    "gateway.ingressClass": {**INGRESS, "gateway.hostname": "models.example.org"},
    "gateway.ingressAnnotations": {**INGRESS, "gateway.hostname": "models.example.org"},
    "gateway.tlsSecret": {**INGRESS, "gateway.hostname": "models.example.org"},
    "gateway.gatewayClass": {
        "gateway.expose": "internal",
        "gateway.hostname": "models.example.org",
        "gateway.tlsSecret": "tls-before",
    },
    "gateway.parentGateway": {"gateway.expose": "internal", "gateway.hostname": "models.example.org"},
    "gateway.webAcl": {"gateway.expose": "internal"},
    **{
        f"observability.{key}": {"observability.metrics": "own"}
        for key in ("retentionDays", "volumeGib", "storageClass", "webhookService", "kubeStateMetrics")
    },
    "observability.alertEmails": {"observability.metrics": "amp"},
    "kubernetes.rayAuthority": {"kubernetes.rayTls": True},
    **{key: {"auth": "keys"} for key in CHANGES if key.startswith(("keys.", "teams."))},
    "keys.team": {"auth": "keys", "teams.requestsPerMinute": 60},
    **{key: {"auth": "keys"} for key in CHANGES if key.startswith("jwt.")},
    "jwt.teamClaim": {"auth": "keys", "teams.requestsPerMinute": 60},
    **{key: {"mirror.image": "registry.example/mirror:1"} for key in CHANGES if key.startswith("trust.signers.")},
}
#: Keys of what only target eks makes, or that differ there.
ON_EKS = (
    "gateway.certificate",
    "gateway.zone",
    "gateway.allowCidrs",
    "gateway.webAcl",
    "observability.alertEmails",
    "pools.returnAfterMinutes",
)
#: Where a key needs others in the file before, whose own change is another matter.
BASES = {"observability.logRetentionDays": {"target": "eks", "observability": {"logs": "cloudwatch"}}}
REBUILDS = {
    "target": "worker groups l4, a100; pools appended at the end change none",
    "pools.name": "worker groups l4; pools appended at the end change none",
    "pools.accelerator": "worker groups l4; pools appended at the end change none",
    "pools.instanceTypes": "worker groups l4; pools appended at the end change none",
    "pools.fallback.instanceTypes": "worker groups l4; pools appended at the end change none",  # of smaller nodes
    "pools.node.cpus": "worker groups l4; pools appended at the end change none",
    "pools.node.memoryGib": "worker groups l4; pools appended at the end change none",
    "pools.node.gpus": "worker groups l4; pools appended at the end change none",
    "pools.reserve.cpuMillis": "worker groups l4; pools appended at the end change none",
    "pools.reserve.memoryMib": "worker groups l4; pools appended at the end change none",
    "kubernetes.image": "kubernetes.image",
    "kubernetes.redisAddress": "kubernetes.redisAddress",
    "kubernetes.rayTls": "kubernetes.rayTls",
    "kubernetes.rayAuthority": "kubernetes.rayTls",
    "kubernetes.namespace": "kubernetes.namespace",
    "kubernetes.createNamespace": "kubernetes.createNamespace",
    "gateway.timeoutS": "gateway.timeoutS",
}
#: What target eks takes alone, and of it what replaces the system nodes, as the warning names it.
NEAR_SYSTEM_NODES = ("cluster.", "tags", "mirror.", "budget.", "auth", "imageRegistry", "modelsAtOnce", "gateway.re")
ROLLS = {
    "cluster.version": ["cluster.version"],
    "cluster.systemInstanceType": ["cluster.systemInstanceType"],
    "cluster.nodeRelease": ["cluster.nodeRelease"],
    "tags": ["tags.team"],
}


def keys(section: type[BaseModel], at: str = "") -> Iterator[str]:
    """All keys of the stack file that hold a value, dotted, in the file's spelling."""
    for name, field in section.model_fields.items():
        key = f"{at}{field.alias or name}"
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [one for one in inner if isinstance(one, type) and issubclass(one, BaseModel)]
        yield from keys(sections[0], f"{key}.") if sections else [key]


def plan_with(changes: dict[str, Any], base: dict[str, Any]) -> Plan:
    settings = copy.deepcopy({"kubernetes": {"image": "registry.example/serving:1"}, **BASE, **base})
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        objects = (
            "node.", "reserve.", "fallback.", "scrapers.", "manifestKey.", "signers.", "budget.", "traces.", "entries.",
        )  # fmt: skip
        rest = rest.partition(".")[0] if rest.startswith(objects) else rest
        if not rest or first == "jwt":
            settings[first] = value
        elif first == "pools":
            settings["pools"][0][rest] = value
        elif first in ("keys", "teams"):
            settings[first] = {"search": {rest: value}}
        else:
            settings.setdefault(first, {})[rest] = value
    pools = settings.pop("pools")
    demanded = (
        model("Qwen/Qwen3-8B", replicas=(0, 1)) if pools[0]["accelerator"] == "L4" else model("org/large", "A100-40G")
    )
    # A budget in USD needs the model's price, and that its facts.
    facts: dict[str, Any] = {"facts": None} if any(key.endswith("budget.usd") for key in changes) else {}
    secrets = ("apiKeys", *(("alertWebhook",) if "observability.webhookService" in changes else ()))
    return planned([demanded], stack(*pools, secrets=secrets, **settings), deploying=False, **facts)


def test_every_key_of_the_stack_file_is_tried() -> None:
    assert set(CHANGES) == set(keys(StackConfig)), "add the new key here, and to REBUILDS if it changes the Ray cluster"


@pytest.mark.parametrize("key", CHANGES)
def test_the_diff_warns_exactly_when_kuberay_builds_another_cluster(key: str) -> None:
    """It was once silent about `redisAddress` and a longer `timeoutS`, while the stack paid for twice its GPUs."""
    base = BASES.get(key, {"target": "eks"} if key in ON_EKS else {})
    before, after = plan_with({}, base), plan_with({**BESIDE.get(key, {}), key: CHANGES[key]}, base)
    assert before.config != after.config, "the change must reach the plan"
    warnings = rebuild_warnings(before, after)
    assert (cluster_parts(before) != cluster_parts(after)) is (key in REBUILDS)
    assert len(warnings) == (key in REBUILDS)
    assert all(warning.startswith(f"the Ray cluster changes ({REBUILDS[key]}): ") for warning in warnings)


def settings_that_change(before: Plan, after: Plan) -> dict[str, str]:
    return {one.name: one.detail for one in changes(before, after) if one.what == "setting"}


@pytest.mark.parametrize("key", [key for key in CHANGES if key.partition(".")[0] not in ELSEWHERE])
def test_the_diff_has_a_line_for_each_changed_key(key: str) -> None:
    base = BASES.get(key, {"target": "eks"} if key in ON_EKS else {})
    before, after = plan_with({}, base), plan_with({**BESIDE.get(key, {}), key: CHANGES[key]}, base)
    name = key.replace("keys.", "keys.search.").replace("teams.", "teams.search.")
    of_lists = name.rpartition(".")[0]  # a list is shown whole
    shown = settings_that_change(before, after)
    assert [one for one in shown if one in (name, of_lists) or one.startswith(f"{name}.")], shown
    assert settings_that_change(after, after) == {}


def test_a_changed_key_is_shown_with_both_values_as_the_file_has_them() -> None:
    key = "observability.webhookService"
    own = {"observability.metrics": "own", "observability.retentionDays": 30, "gateway.timeoutS": 7200}
    before, after = plan_with({}, {"gateway": {"replicas": 2}}), plan_with(own, {})
    assert list(changes(before, after)) == [
        Change("~", "setting", "gateway.timeoutS", "3600 → 7200"),
        Change("~", "setting", "observability.metrics", "none → own"),
        Change("~", "setting", "observability.retentionDays", "15 → 30"),
    ], "a default that is written out is no change"
    hosts = plan_with({"kubernetes.rayTls": True, "kubernetes.apiCidrs": ["10.9.0.0/24"]}, {})
    assert settings_that_change(before, hosts) == {
        "kubernetes.rayTls": "false → true",
        "kubernetes.apiCidrs": 'unset → ["10.9.0.0/24"]',
    }
    hooked = settings_that_change(before, plan_with({**BESIDE[key], key: CHANGES[key]}, {}))
    assert hooked["alertWebhook"] == "unset → a secret", "and nothing of it"
    signed = plan_with({"trust.manifestKey.kms": CHANGES["trust.manifestKey.kms"]}, {})
    assert settings_that_change(before, signed)["trust.manifestKey.publicKey"] == "changed", (
        "a key says nobody anything"
    )


def test_a_secret_that_is_encrypted_anew_has_a_line_and_shows_nothing_of_it() -> None:
    def with_secret(text: str) -> Plan:
        made = plan_with({}, {})
        document = made.source.document
        config = {**document.data["config"], "modelfleet:apiKeys": {"team": {"secure": text}}}
        return replace(made, source=replace(made.source, document=replace(document, data={"config": config})))

    before, after = with_secret("v1:AAAA:AAAA"), with_secret("v1:BBBB:BBBB")
    assert list(changes(before, after)) == [Change("~", "setting", "apiKeys", "encrypted anew")]
    assert list(changes(after, after)) == []


def test_a_key_that_anybody_may_name_stays_in_its_cell() -> None:
    label = "a` ![x](https://example.org/x.png) |"
    keys = {"observability.metrics": "prometheus", "observability.labels": {label: "b"}}
    before, after = plan_with({}, {}), plan_with(keys, {})
    text = as_markdown(Difference("test", "main", before, after, tuple(changes(before, after)), ()))
    assert "| `observability.labels.a' ![x](https://example.org/x.png) \\|` |" in text


@pytest.mark.parametrize("key", [key for key in CHANGES if key.startswith(NEAR_SYSTEM_NODES)])
def test_the_diff_warns_exactly_when_the_system_nodes_are_replaced(key: str) -> None:
    """Tags are among them: they are in the launch template, and a new version of it rolls the nodes."""
    before, after = plan_with({}, {"target": "eks"}), _changed(key)
    assert [warning.partition(" ")[0] for warning in roll_warnings(before, after)] == ROLLS.get(key, [])


def _changed(key: str) -> Plan:
    return plan_with({key: CHANGES[key]}, {"target": "eks"})


def test_a_removed_tag_rolls_and_a_removed_release_does_not() -> None:
    """Without `nodeRelease` a group keeps the release that it has."""
    base = {"target": "eks"}
    tagged, released = plan_with({"tags": {"team": "ml"}}, base), _changed("cluster.nodeRelease")
    assert roll_warnings(tagged, plan_with({}, base))[0].startswith("tags.team ml → unset: ")
    assert roll_warnings(released, plan_with({}, base)) == []


def test_an_appended_pool_is_not_a_rebuild_but_a_removed_one_is() -> None:
    both, first = plan_with({}, {}), plan_with({}, {"pools": [L4]})
    assert rebuild_warnings(first, both) == []
    assert rebuild_warnings(both, first)[0].startswith("the Ray cluster changes (worker groups a100; ")


def test_another_region_is_a_rebuild() -> None:
    """Every pod has the region in its environment."""
    pools = [L4, A100]
    east, west = (
        planned([], stack(*pools, target="kubernetes", region=region)) for region in ("us-east-1", "us-west-2")
    )
    assert rebuild_warnings(east, west)[0].startswith("the Ray cluster changes (aws:region): ")


def test_a_local_stack_has_no_cluster_that_kuberay_builds() -> None:
    small, large = (
        planned([], stack({**L4, "name": name}, target="local", region=None)) for name in ("small", "large")
    )
    assert rebuild_warnings(small, large) == []


def test_the_warning_says_what_the_stacks_own_rollout_does() -> None:
    after = plan_with({"kubernetes.image": "registry.example/serving:2", "kubernetes.rollout": "replace"}, {})
    assert "the live Ray cluster is deleted first" in rebuild_warnings(plan_with({}, {}), after)[0]


@pytest.mark.parametrize("change", [{"cluster.deletionProtection": True}, {"kubernetes.headStorage": "valkey"}])
def test_a_store_for_the_heads_state_is_another_cluster(change: dict[str, Any]) -> None:
    """Protection brings a store with it, so it must not come as a surprise."""
    on_eks = {"target": "eks", "pools": [L4]}
    warnings = rebuild_warnings(plan_with({}, on_eks), plan_with(change, on_eks))
    assert [warning.partition(": ")[0] for warning in warnings] == ["the Ray cluster changes (kubernetes.headStorage)"]
