"""Tokens of an issuer, signed with real keys of each algorithm, at the real HAProxy; and all that is no valid token."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from modelfleet.infra.planning.plan import AllowancePlan, JwtPlan, KeyPlan
from modelfleet.infra.reading.jwks import keys_of
from tests.gateway.conftest import ALICE, Gateway, Make
from tests.gateway.test_who_may_what import CHAT

ISSUER, AUDIENCE = "https://login.example.org/", "modelfleet"
HASHES: dict[str, Any] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
CURVES: dict[str, Any] = {
    "P-256": (ec.SECP256R1(), 32),
    "P-384": (ec.SECP384R1(), 48),
    "P-521": (ec.SECP521R1(), 66),
}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int | None = None) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


@dataclass(frozen=True)
class Signer:
    """One private key of the issuer."""

    kid: str
    private: Any
    curve: str = ""

    @property
    def jwk(self) -> dict[str, Any]:
        numbers = self.private.public_key().public_numbers()
        if self.curve:
            size = CURVES[self.curve][1]
            point = {"x": number(numbers.x, size), "y": number(numbers.y, size)}
            return {"kid": self.kid, "kty": "EC", "crv": self.curve, "use": "sig", **point}
        return {"kid": self.kid, "kty": "RSA", "use": "sig", "n": number(numbers.n), "e": number(numbers.e)}

    def sign(self, algorithm: str, data: bytes) -> bytes:
        digest = HASHES[algorithm[2:]]
        if algorithm.startswith("ES"):
            r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(digest)))
            size = CURVES[self.curve][1]
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")
        if algorithm.startswith("PS"):
            return bytes(self.private.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest))
        return bytes(self.private.sign(data, padding.PKCS1v15(), digest))


@cache
def signers() -> dict[str, Signer]:
    made = {"rsa": Signer("rsa", rsa.generate_private_key(65537, 2048))}
    made |= {curve: Signer(curve, ec.generate_private_key(CURVES[curve][0]), curve) for curve in CURVES}
    return {**made, "stranger": Signer("rsa", rsa.generate_private_key(65537, 2048))}


def jwks(*names: str) -> bytes:
    return json.dumps({"keys": [signers()[name].jwk for name in names]}).encode()


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    found = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann@example.org", "exp": now + 300, "iat": now, "team": "web"}
    return {name: value for name, value in (found | changes).items() if value is not None}


def token(algorithm: str = "RS256", signer: str = "rsa", *, head: dict[str, Any] | None = None, **changes: Any) -> str:
    header = {"alg": algorithm, "typ": "JWT", "kid": signers()[signer].kid, **(head or {})}
    signed = ".".join(b64(json.dumps(part).encode()) for part in (header, claims(**changes)))
    return f"{signed}.{b64(signers()[signer].sign(algorithm, signed.encode()))}"


def jwt_plan(*names: str) -> JwtPlan:
    found, left_out = keys_of(jwks(*names))
    assert not left_out
    entries = (KeyPlan("jwt:web", team="web", models=("small",)), KeyPlan("jwt:all", team="all"))
    return JwtPlan(ISSUER, AUDIENCE, "sub", "team", found, entries)


def test_with_auth_jwt_a_token_opens_and_no_api_key_does(make_gateway: Make) -> None:
    teams = (AllowancePlan("all"), AllowancePlan("web"))
    gateway = make_gateway(auth="jwt", jwt=jwt_plan("rsa"), teams=teams, keys=None)
    assert ask(gateway, token()).status_code == 200
    headers = {"x-api-key": ALICE}
    for refused in (ask(gateway, ALICE), gateway.post(CHAT, {"model": "small"}, key=None, headers=headers)):
        assert refused.status_code == 401 and "No valid token was given" in refused.json()["error"]["message"]


@pytest.fixture(scope="module")
def gateway(make_gateway: Make) -> Gateway:
    teams = (AllowancePlan("all"), AllowancePlan("web"))
    return make_gateway(jwt=jwt_plan("rsa", *CURVES), teams=teams, who=(KeyPlan("alice"),))


def ask(gateway: Gateway, key: str, model: str = "small") -> requests.Response:
    return gateway.post(CHAT, {"model": model}, key=key)


@pytest.mark.parametrize(
    ("algorithm", "signer"),
    [
        ("RS256", "rsa"),
        ("RS384", "rsa"),
        ("RS512", "rsa"),
        ("ES256", "P-256"),
        ("ES384", "P-384"),
        ("ES512", "P-521"),
        ("PS256", "rsa"),
        ("PS384", "rsa"),
        ("PS512", "rsa"),
    ],
)
def test_a_token_of_each_algorithm_opens_its_teams_models_under_its_own_name(
    gateway: Gateway, algorithm: str, signer: str
) -> None:
    assert ask(gateway, token(algorithm, signer)).status_code == 200
    seen = gateway.backend.last.headers
    assert (seen["x-modelfleet-key"], seen["x-modelfleet-team"]) == ("jwt:ann@example.org", "web")
    assert "authorization" not in seen
    assert ask(gateway, token(algorithm, signer), "org/large").status_code == 404
    assert ask(gateway, token(algorithm, signer, team="all"), "org/large").status_code == 200
    listed = gateway.get("/v1/models", token(algorithm, signer)).json()["data"]
    assert [one["id"] for one in listed] == ["small"]


def test_an_api_key_stays_what_it_is(gateway: Gateway) -> None:
    assert ask(gateway, ALICE, "org/large").status_code == 200
    assert gateway.backend.last.headers["x-modelfleet-key"] == "alice"
    assert "x-modelfleet-team" not in gateway.backend.last.headers


def public_pem() -> bytes:
    return keys_of(jwks("rsa"))[0][0].pem.encode()


def hmac_token(secret: bytes, algorithm: str = "HS256") -> str:
    header = {"alg": algorithm, "typ": "JWT", "kid": "rsa"}
    signed = ".".join(b64(json.dumps(part).encode()) for part in (header, claims()))
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), 'sha256'))}"


def without_signature(algorithm: str) -> str:
    return ".".join(
        [b64(json.dumps({"alg": algorithm, "kid": "rsa"}).encode()), b64(json.dumps(claims()).encode()), ""]
    )


def changed_payload() -> str:
    head, _, signature = token().split(".")
    return f"{head}.{b64(json.dumps(claims(team='all')).encode())}.{signature}"


def now(seconds: int) -> int:
    return int(time.time()) + seconds


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "expired": (lambda: token(exp=now(-1)), "it ended at 20"),
    "without an end": (lambda: token(exp=None), "it has no `exp`"),
    "an end that is text": (lambda: token(exp="never"), "it has no `exp`"),
    "an end below zero": (lambda: token(exp=-5), "it has no `exp`"),
    "not yet valid": (lambda: token(nbf=now(300)), "`nbf` is in the future"),
    "another audience": (lambda: token(aud="other"), "`aud` is not this service"),
    "no audience": (lambda: token(aud=None), "`aud` is not this service"),
    "audiences of others": (lambda: token(aud=["other", "modelfleet2"]), "`aud` is not this service"),
    "an audience that is a list's text": (lambda: token(aud='["modelfleet"]'), "`aud` is not this service"),
    "another issuer": (lambda: token(iss=ISSUER + "x"), "`iss` is another issuer"),
    "no issuer": (lambda: token(iss=None), "`iss` is another issuer"),
    "alg none": (lambda: without_signature("none"), "no key of its issuer"),
    "alg None": (lambda: without_signature("None"), "no key of its issuer"),
    "alg RS256 without a signature": (lambda: without_signature("RS256"), "its signature is wrong"),
    "HS256 with the public key": (lambda: hmac_token(public_pem()), "no key of its issuer"),
    "HMAC that says RS256": (lambda: hmac_token(public_pem(), "RS256"), "its signature is wrong"),
    "an algorithm of another kind": (lambda: token("RS256", head={"kid": "P-256"}), "no key of its issuer"),
    "RS256 that says RS512": (lambda: token("RS256", head={"alg": "RS512"}), "its signature is wrong"),
    "unknown kid": (lambda: token(head={"kid": "other"}), "no key of its issuer"),
    "no kid": (lambda: token(head={"kid": None}), "no key of its issuer"),
    "a kid with the algorithm": (lambda: token(head={"kid": "rsa|RS256", "alg": "x"}), "no key of its issuer"),
    "a file as kid": (lambda: token(head={"kid": "../../dev/null"}), "no key of its issuer"),
    "another's key under the same id": (lambda: token(signer="stranger"), "its signature is wrong"),
    "a changed payload": (changed_payload, "its signature is wrong"),
    "cut": (lambda: token()[:-20], "its signature is wrong"),
    "an extension": (lambda: token(head={"crit": ["b64"], "b64": False}), "`crit` is not supported"),
    "a name with a quote": (lambda: token(sub='a"b'), "`sub` is missing, or no name"),
    "a name with a line's end": (lambda: token(sub="a\nb"), "`sub` is missing, or no name"),
    "a name with a last line's end": (lambda: token(sub="a\n"), "`sub` is missing, or no name"),
    "a name that is a prefix": (lambda: token(sub=""), "`sub` is missing, or no name"),
    "a name of 60": (lambda: token(sub="x" * 60), "`sub` is missing, or no name"),
    "no name": (lambda: token(sub=None), "`sub` is missing, or no name"),
    "another team": (lambda: token(team="other"), "`team` is missing, or no team"),
    "no team": (lambda: token(team=None), "`team` is missing, or no team"),
    "teams": (lambda: token(team=["web"]), "`team` is missing, or no team"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_valid_token_is_401_with_its_reason(gateway: Gateway, what: str) -> None:
    make, words = BAD[what]
    before = len(gateway.backend.seen)
    answer = ask(gateway, make())
    assert answer.status_code == 401, answer.text
    assert words in answer.json()["error"]["message"]
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert len(gateway.backend.seen) == before


@pytest.mark.parametrize(
    "text",
    ["a.b.c", "..", "e30.e30.", "x" * 20_000, ".".join(["x" * 7_000] * 3), "eyJhbGciOiJSUzI1NiJ9." + "x" * 20_000],
)
def test_what_only_looks_like_a_token_is_401(gateway: Gateway, text: str) -> None:
    assert ask(gateway, text).status_code == 401
    assert ask(gateway, token()).status_code == 200


def test_a_long_token_is_read_as_a_whole(gateway: Gateway) -> None:
    """As issuers make them that list each group of a person."""
    long = token(groups=[f"group-{one}" for one in range(1200)])
    assert len(long) > 20_000 and ask(gateway, long).status_code == 200
    assert ask(gateway, token(groups=["x" * 20_000], exp=now(-5))).status_code == 401


def test_two_authorization_headers_are_refused(gateway: Gateway) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token()}\r\nauthorization: Bearer {ALICE}\r\n"
    assert b" 400 " in gateway.raw(head.encode() + b"content-length: 2\r\n\r\n{}").splitlines()[0]


def test_a_token_as_api_key_opens_nothing(gateway: Gateway) -> None:
    assert gateway.post(CHAT, {"model": "small"}, key=None, headers={"x-api-key": token()}).status_code == 401


def test_one_of_several_audiences_is_enough_and_a_clock_may_be_a_little_off(gateway: Gateway) -> None:
    assert ask(gateway, token(aud=["other", AUDIENCE], nbf=now(30))).status_code == 200


def test_a_token_that_names_itself_like_an_api_key_is_somebody_else(gateway: Gateway) -> None:
    assert ask(gateway, token(sub="alice")).status_code == 200
    assert gateway.backend.last.headers["x-modelfleet-key"] == "jwt:alice"


def test_names_that_share_what_is_before_the_at_sign_have_limits_of_their_own(make_gateway: Make) -> None:
    entries = (KeyPlan("jwt:", requests_per_minute=1),)
    plan = replace(jwt_plan("rsa"), team_claim=None, entries=entries)
    gateway = make_gateway(jwt=plan)
    asked = [ask(gateway, token(sub=name, team=None)).status_code for name in ("ann@a", "ann@a", "ann@b", "9@1")]
    assert asked == [200, 429, 200, 200]


def test_a_rotated_key_is_taken_after_a_reload_and_the_old_one_no_more(make_gateway: Make) -> None:
    plan = replace(jwt_plan("rsa"), team_claim=None, entries=(KeyPlan("jwt:"),))
    gateway = make_gateway(jwt=plan)
    old, new = token(), token("ES256", "P-256")
    assert [ask(gateway, one).status_code for one in (old, new)] == [200, 401]
    gateway.change(jwt=replace(plan, keys=jwt_plan("P-256").keys))
    assert [ask(gateway, one).status_code for one in (old, new)] == [401, 200]


@pytest.fixture(scope="module")
def listed(make_gateway: Make) -> Gateway:
    """Tokens name lists of models beside their team. `web` may use the small model alone, whatever they say."""
    entries = (
        KeyPlan("jwt:web:ml.basic", team="web", models=("small",)),
        KeyPlan("jwt:all:ml.basic", team="all", models=("small",)),
        KeyPlan("jwt:all:big", team="all", models=("org/large", "org/large-lora")),
    )
    plan = replace(jwt_plan("rsa"), entries=entries, models_claim="org.may", lists=("big", "ml.basic"))
    return make_gateway(jwt=plan, teams=(AllowancePlan("all"), AllowancePlan("web")))


def may(names: Any, team: str = "all") -> str:
    return token(team=team, org={"may": names})


@pytest.mark.parametrize(
    ("names", "models"),
    [
        ("ml.basic", ["small"]),
        (["x", "ml.basic"], ["small"]),
        (["ml.basic", "big"], ["org/large", "org/large-lora"]),
        (["x"] * 200 + ["big"], ["org/large", "org/large-lora"]),
    ],
)
def test_a_token_has_the_first_list_of_models_that_it_names(listed: Gateway, names: Any, models: list[str]) -> None:
    own = may(names)
    assert [one["id"] for one in listed.get("/v1/models", own).json()["data"]] == models
    asked = {name: ask(listed, own, name).status_code for name in ("small", "org/large", "org/large-lora")}
    assert asked == {name: 200 if name in models else 404 for name in asked}


def test_a_list_opens_nothing_that_the_team_may_not(listed: Gateway) -> None:
    assert ask(listed, may("ml.basic", "web")).status_code == 200
    answer = ask(listed, may("big", "web"), "org/large")
    assert answer.status_code == 401 and "its team may use none of its models" in answer.text


@pytest.mark.parametrize(
    "names",
    [
        None,
        "",
        "other",
        "big ml.basic",
        "bigger",
        "mlxbasic",
        "big\n",
        [],
        ['x"big"', 'a,"big",b', "big "],
        {"big": 1},
        True,
        7,
    ],
    ids=range(12),
)
def test_a_token_that_names_no_list_is_refused(listed: Gateway, names: Any) -> None:
    answer = ask(listed, may(names))
    assert answer.status_code == 401 and "`org.may` is missing, or no list of models" in answer.text


def test_without_teams_a_list_is_all_that_a_token_may(make_gateway: Make) -> None:
    entries = (KeyPlan("jwt::big", models=("org/large",)),)
    plan = replace(jwt_plan("rsa"), team_claim=None, entries=entries, models_claim="roles", lists=("big",))
    gateway = make_gateway(jwt=plan)
    own = token(team=None, roles=["big"])
    assert [ask(gateway, own, name).status_code for name in ("org/large", "small")] == [200, 404]
    assert ask(gateway, token(team=None)).status_code == 401
