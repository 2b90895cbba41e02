"""Which addresses a stack's pods need beside its object store, by its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.manifests.network import network_policies
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.egress import PRIVATE
from modelfleet.infra.planning.plan import Way
from modelfleet.serving.config.errors import InputErrors
from tests.cluster.fleet import model, planned
from tests.gateway.test_jwt import jwks

L4 = [{"name": "l4", "accelerator": "L4", "maxNodes": 2, "instanceTypes": ["g6.2xlarge"]}]
STORE = "10.8.0.0/24"


def plan_of(root: Path, *, engine: dict[str, Any] | None = None, **config: Any) -> Plan:
    """A stack on an existing cluster that names its store, with one model from there."""
    mirror = {"create": True, "bucket": "b", "storageCidrs": [STORE], "sources": {"org/m": "s3://theirs/m"}}
    return planned(root, [model("org/m", "L4", **(engine or {}))], pools=L4, **{"mirror": mirror, **config})


def purposes(ways: tuple[Way, ...]) -> set[str]:
    return {way.purpose for way in ways}


def test_a_stack_that_names_its_store_reaches_nothing_else(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    for ways in (plan.egress.replicas, plan.egress.mirror):
        assert {network for way in ways for network in way.networks} == {STORE, "169.254.170.23/32"}


@pytest.mark.parametrize(
    ("engine", "purpose"),
    [
        ({"engine_kwargs": {"hf_config_path": "org/other"}}, "internet"),
        ({"gcs_mirror_config": {"bucket_uri": "gs://weights/m"}}, "internet"),
        ({"lora": [{"name": "a", "source": "az://adapters/a"}]}, "internet"),
        ({"engine_kwargs": {"allowed_media_domains": ["images.example.com"]}}, "media"),
    ],
    ids=["configuration", "other cloud", "adapter elsewhere", "media"],
)
def test_public_addresses_are_open_if_a_model_needs_them(tmp_path: Path, engine: dict[str, Any], purpose: str) -> None:
    plan = plan_of(tmp_path, engine=engine)
    (public,) = (way for way in plan.egress.replicas if "0.0.0.0/0" in way.networks)
    assert public.purpose == purpose
    assert public.ports == ((80, 443) if purpose == "media" else (443,))
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= {*public.without}


def test_a_model_from_the_hub_opens_it_for_replicas_where_no_mirror_copies_it(tmp_path: Path) -> None:
    mirrors = {"create": False, "bucket": "b", "storageCidrs": [STORE]}
    assert "internet" in purposes(plan_of(tmp_path / "straight", mirror=mirrors).egress.replicas)
    copied = plan_of(tmp_path / "copied", mirror={**mirrors, "create": True})
    assert "internet" not in purposes(copied.egress.replicas)
    assert "internet" in purposes(copied.egress.mirror), "the Job loads it"


@pytest.mark.parametrize(
    "engine",
    [
        {"lora": [{"name": "a", "source": "org/adapter"}]},
        {"tokenizer_id": "org/other"},
        {"engine_kwargs": {"speculative_config": {"method": "eagle", "model": "o/d", "num_speculative_tokens": 2}}},
    ],
    ids=["adapter", "tokenizer", "draft"],
)
def test_what_a_model_loads_beside_its_weights_comes_from_the_hub_through_the_job(
    tmp_path: Path, engine: dict[str, Any]
) -> None:
    plan = plan_of(tmp_path / "copied", engine=engine)
    assert "internet" not in purposes(plan.egress.replicas) and "internet" in purposes(plan.egress.mirror)
    mirror = {"create": False, "bucket": "b", "storageCidrs": [STORE], "sources": {"org/m": "s3://theirs/m"}}
    assert "internet" in purposes(plan_of(tmp_path / "straight", engine=engine, mirror=mirror).egress.replicas)


def test_a_folder_on_the_node_needs_nothing(tmp_path: Path) -> None:
    engine = {"hf_model_id": "/models/m", "lora": [{"name": "a", "source": "/adapters/a"}]}
    assert purposes(plan_of(tmp_path, engine=engine).egress.replicas) == {"storage", "credentials"}


def test_packages_that_a_stack_trusts_come_from_an_index(tmp_path: Path) -> None:
    engine = {"runtime_env": {"pip": ["einops"]}}
    plan = plan_of(tmp_path, engine=engine, trust={"foreignCode": ["org/m"]})
    assert "internet" in purposes(plan.egress.replicas)


def test_a_private_host_of_media_is_open_alone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, engine={"engine_kwargs": {"allowed_media_domains": ["10.1.2.3"]}})
    assert Way("media", ("10.1.2.3/32",)) in plan.egress.replicas


def test_an_existing_network_may_have_its_own_endpoint_of_s3(tmp_path: Path) -> None:
    """An interface endpoint has private addresses; in a network of the stack's own S3 has public ones."""
    network = {"vpcId": "vpc-1", "privateSubnetIds": ["subnet-1", "subnet-2"]}
    usual = {"create": True, "bucket": "b"}
    theirs = plan_of(tmp_path / "theirs", target="eks", network=network, mirror=usual)
    assert Way("storage", ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"), (443,)) in (
        theirs.egress.replicas
    )
    ours = plan_of(tmp_path / "ours", target="eks", mirror=usual)
    assert not [way for way in ours.egress.replicas if "10.0.0.0/8" in way.networks]


@pytest.mark.parametrize(
    ("config", "networks", "port"),
    [
        ({"target": "eks", "kubernetes": {"headStorage": "valkey"}}, ["10.0.0.0/16"], 6379),
        ({"kubernetes": {"redisAddress": "rediss://store.data:6380"}}, [*PRIVATE, "0.0.0.0/0"], 6380),
    ],
    ids=["made", "existing"],
)
def test_only_the_head_reaches_the_store_of_its_state(
    tmp_path: Path, config: dict[str, Any], networks: list[str], port: int
) -> None:
    plan = plan_of(tmp_path, **config)
    store = [way for way in plan.egress.head if way.purpose == "store"]
    assert [network for way in store for network in way.networks] == networks
    assert {way.ports for way in store} == {(port,)}
    assert "store" not in purposes(plan.egress.replicas)


KEY = {
    "kms": "arn:aws:kms:us-west-2:111122223333:key/1",
    "publicKey": "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEIuTQNvHGWNyZO9WrpFWYozT5wqtO\nLHuXIFaMnax9EkR65zj7Mngmi52M0fLln4QnWhlDIWnsVn1vgBBRMc1KOA==\n-----END PUBLIC KEY-----\n",
}


def test_only_who_signs_reaches_kms_where_a_store_is_named(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, trust={"manifestKey": KEY})
    assert purposes(plan.egress.mirror) == {"storage", "credentials", "kms"}
    assert "kms" not in purposes(plan.egress.replicas) | purposes(plan.egress.head)


@pytest.mark.parametrize(("target", "ports"), [("kubernetes", ()), ("eks", (443,))])
def test_an_api_server_that_is_named_is_the_only_one_that_head_and_operator_reach(
    tmp_path: Path, target: str, ports: tuple[int, ...]
) -> None:
    plan = plan_of(tmp_path, target=target, kubernetes={"apiCidrs": ["10.9.0.0/28"]})
    assert plan.egress.api == (Way("api", ("10.9.0.0/28",), ports),)
    assert [way for way in plan.egress.head if way.purpose == "api"] == [*plan.egress.api]


@pytest.mark.parametrize(
    ("cidrs", "said"),
    [(["kubernetes.default"], r"apiCidrs.*found 'kubernetes.default', which is not a network"), ([], "is empty")],
    ids=["a name", "nothing"],
)
def test_an_api_server_that_is_nowhere_is_said_at_its_line(tmp_path: Path, cidrs: list[str], said: str) -> None:
    with pytest.raises(InputErrors, match=said):
        plan_of(tmp_path, kubernetes={"apiCidrs": cidrs})


def test_a_store_that_is_not_a_network_is_said_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputErrors, match=r"storageCidrs.*found 'minio', which is not a network"):
        plan_of(tmp_path, mirror={"create": True, "bucket": "b", "storageCidrs": ["minio"]})


def test_mirror_jobs_have_a_namespace_of_their_own_where_the_stack_makes_namespaces(tmp_path: Path) -> None:
    assert plan_of(tmp_path / "a").mirror_namespace == "modelfleet-dev-mirror"
    theirs = {"namespace": "team", "createNamespace": False}
    assert plan_of(tmp_path / "b", kubernetes=theirs).mirror_namespace == "team"
    named = plan_of(tmp_path / "c", kubernetes={**theirs, "mirrorNamespace": "team-copies"})
    assert (named.mirror_namespace, named.own_mirror_namespace) == ("team-copies", True)


@pytest.mark.parametrize(
    ("kubernetes", "said"),
    [
        ({"namespace": "n" * 60}, "of which Kubernetes takes 63"),
        ({"namespace": "team", "mirrorNamespace": "team"}, "found 'team', where the replicas are"),
    ],
    ids=["too long", "the same"],
)
def test_a_namespace_for_mirror_jobs_that_cannot_be(tmp_path: Path, kubernetes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputErrors, match=said):
        plan_of(tmp_path, kubernetes=kubernetes)


def test_the_gateway_reaches_the_issuer_whose_keys_it_reads_at_its_port(tmp_path: Path) -> None:
    """A file of the project needs no way."""
    keys = {"auth": "keys", "apiKeys": {"a": {"secure": "v1:x"}}}
    jwt = {"issuer": "https://login.example.org/", "audience": "models", "jwks": "https://login.example.org:8443/keys"}
    plan = plan_of(tmp_path / "asked", jwt=jwt, **keys)
    public, private = plan.egress.issuer
    assert (public.networks, public.ports, private.networks, private.ports) == (
        ("0.0.0.0/0",),
        (8443,),
        PRIVATE,
        (8443,),
    )
    assert set(PRIVATE) < set(public.without)
    policies = {one["metadata"]["name"]: one["spec"] for one in network_policies(plan)}
    of_gateway = [rule["ports"] for rule in policies["gateway"]["egress"]]
    assert of_gateway.count([{"port": 8443}]) == 2
    assert not any(
        {"port": 8443} in rule.get("ports", []) for name in ("ray", "closed") for rule in policies[name]["egress"]
    )
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "keys.json").write_bytes(jwks("rsa"))
    from_file = plan_of(tmp_path / "file", jwt={**jwt, "jwks": "keys.json"}, **keys)
    assert from_file.gateway.jwt is not None and not from_file.egress.issuer
