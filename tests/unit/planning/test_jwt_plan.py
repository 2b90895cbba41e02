"""The stack file's `jwt`: key sets of issuers, what HAProxy gets of them, and what is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from modelfleet.infra.gateway.jwt import texts
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.plan import JwtKey, KeyPlan
from modelfleet.infra.reading import jwks as reading
from modelfleet.infra.reading.jwks import JwksError, keys_of, read_jwks
from modelfleet.serving.config.errors import InputErrors, SetupError, Severity
from tests.gateway.test_jwt import jwks, signers
from tests.unit.planning.builders import model, planned, pool, stack
from tests.unit.stack.test_load import HEAD, sentences

JWT = {"issuer": "https://login.example.org/", "audience": "models", "jwks": "https://login.example.org/keys"}
KEYS = (JwtKey("one", ("RS256",), "PEM\n"), JwtKey("two", ("ES256", "ES384"), "PEM2\n"))


def plan_of(**sections: Any) -> Plan:
    made = stack(pool(), **{"auth": "keys", "secrets": ["apiKeys"], "jwt": JWT, **sections})
    return planned([model("org/large"), model("small")], made, jwt_keys=KEYS)


def test_a_team_of_tokens_has_the_teams_models_and_all_tokens_the_gateways_limits() -> None:
    plan = plan_of(
        jwt={**JWT, "teamClaim": "org.team"},
        gateway={"requestsPerMinute": 9},
        teams={"a": {"models": ["org/*"]}, "b": {}},
    )
    jwt = plan.gateway.jwt
    assert jwt is not None and (jwt.name_claim, jwt.team_claim, jwt.keys) == ("sub", "org.team", KEYS)
    assert jwt.entries == (
        KeyPlan("jwt:a", 9, team="a", models=("org/large",)), KeyPlan("jwt:b", 9, team="b"),
    )  # fmt: skip
    alone = plan_of().gateway.jwt
    assert alone is not None and alone.entries == (KeyPlan("jwt:"),)


def test_lists_of_models_are_cut_by_the_teams_and_keep_their_order() -> None:
    plan = plan_of(
        jwt={**JWT, "teamClaim": "team", "modelsClaim": "roles", "models": {"z": ["org/*"], "a": ["*"]}},
        teams={"one": {"models": ["small"]}, "two": {}},
    )
    jwt = plan.gateway.jwt
    assert jwt is not None and (jwt.models_claim, jwt.lists) == ("roles", ("z", "a"))
    assert {one.name: (one.team, one.models) for one in jwt.entries} == {
        "jwt:one:a": ("one", ("small",)),
        "jwt:two:z": ("two", ("org/large",)),
        "jwt:two:a": ("two", ("org/large", "small")),
    }
    alone = plan_of(jwt={**JWT, "modelsClaim": "roles", "models": {"z": ["org/*"]}}).gateway.jwt
    assert alone is not None and alone.entries == (KeyPlan("jwt::z", models=("org/large",)),)


def test_the_map_has_each_key_with_its_own_algorithms_alone() -> None:
    jwt = plan_of().gateway.jwt
    assert jwt is not None
    made = texts(jwt)
    assert made["jwt.map"] == "one|RS256 0\ntwo|ES256 1\ntwo|ES384 1\n"
    assert (made["jwt-0.pem"], made["jwt-1.pem"]) == ("PEM\n", "PEM2\n")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"auth": "none"}, "jwt: is set, but auth is none"),
        (
            {"jwt": {**JWT, "modelsClaim": "roles", "models": {"z": ["other"]}}},
            "jwt.models.z[0]: found 'other', which matches no model",
        ),
        (
            {
                "jwt": {**JWT, "teamClaim": "t", "modelsClaim": "roles", "models": {"z": ["small"]}},
                "teams": {"one": {"models": ["org/*"]}},
            },
            "jwt.models.z: and those of each team have no model in common",
        ),
        ({"jwt": {**JWT, "teamClaim": "team"}}, "jwt.teamClaim: found team, and no team is in modelfleet:teams"),
    ],
)
def test_tokens_that_open_nothing_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(InputErrors) as caught:
        plan_of(**sections)
    assert words in caught.value.findings[0].sentence()


def test_auth_jwt_needs_an_issuer_and_no_api_key() -> None:
    plan = plan_of(auth="jwt", secrets=[], teams={"a": {}}, jwt={**JWT, "teamClaim": "team"})
    assert plan.gateway.auth == "jwt" and plan.gateway.jwt is not None
    with pytest.raises(InputErrors) as caught:
        plan_of(auth="jwt", jwt=None, keys={"a": {}})
    said = [one.sentence() for one in caught.value.findings]
    for words in (
        "auth: is jwt, and no issuer is named; add `modelfleet:jwt`",
        "keys: is set, but auth is jwt, so no API key opens anything",
        "apiKeys: is set, but auth is jwt, so no API key opens anything",
    ):
        assert any(words in one for one in said), said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"issuer": "http://login.example.org"}, "jwt.issuer"),
        ({"issuer": "https://x' y"}, "jwt.issuer"),
        ({"audience": "[a]"}, "jwt.audience"),
        ({"audience": "a'b"}, "jwt.audience"),
        ({"jwks": "http://login.example.org/keys"}, "jwt.jwks"),
        ({"jwks": "/etc/keys.json"}, "jwt.jwks"),
        ({"nameClaim": "a'b"}, "jwt.nameClaim"),
        ({"nameClaim": "$.x"}, "jwt.nameClaim"),
        ({"secret": "x"}, "jwt.secret: unknown"),
        ({"modelsClaim": "roles"}, "name both modelsClaim and models, or neither"),
        ({"models": {"a": ["*"]}}, "name both modelsClaim and models, or neither"),
        ({"modelsClaim": "roles", "models": {"a:b": ["*"]}}, "jwt.models"),
        ({"modelsClaim": "roles", "models": {"a": []}}, "jwt.models.a"),
        ({"jwks": "https://login.example.org/a b"}, "jwt.jwks"),
        ({"jwks": "https://login.example.org/a'b"}, "jwt.jwks"),
        ({"jwks": "https://me:pw@login.example.org/"}, "jwt.jwks"),
        ({"jwks": "https://login.example.org:99999/keys"}, "jwt.jwks"),
    ],
)
def test_what_haproxy_could_misread_is_refused_with_its_line(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    found = sentences(tmp_path, HEAD + f"  modelfleet:jwt: {json.dumps({**JWT, **change})}\n")
    assert any(words in one and one.startswith("stacks/Pulumi.dev.yaml:5") for one in found), found


def test_a_key_set_becomes_pem_with_the_algorithms_that_its_keys_are_for() -> None:
    found, left_out = keys_of(jwks("rsa", "P-256", "P-384", "P-521"))
    assert not left_out
    assert {key.kid: key.algorithms for key in found} == {
        "rsa": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
        "P-256": ("ES256",),
        "P-384": ("ES384",),
        "P-521": ("ES512",),
    }
    for key in found:
        numbers = signers()[key.kid].private.public_key().public_numbers()
        assert load_pem_public_key(key.pem.encode()).public_numbers() == numbers  # type: ignore[union-attr]


def set_of(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


def rsa_jwk(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**signers()["rsa"].jwk, **changes}.items() if value is not None}


def test_a_key_for_one_algorithm_is_for_no_other() -> None:
    assert keys_of(set_of(rsa_jwk(alg="PS384")))[0][0].algorithms == ("PS384",)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ({"kty": "oct", "kid": "s", "k": "c2VjcmV0"}, "of a kind (oct)"),
        ({"kty": "OKP", "crv": "Ed25519", "kid": "s", "x": "AA"}, "of a kind (OKP Ed25519)"),
        (rsa_jwk(alg="HS256"), "is for HS256"),
        (rsa_jwk(alg="none"), "is for none"),
        (rsa_jwk(kid=None), "has no `kid`"),
        (rsa_jwk(kid="a b"), "has no `kid`"),
        (rsa_jwk(kid="a|b"), "has no `kid`"),
        (rsa_jwk(kid="a\n0"), "has no `kid`"),
        (rsa_jwk(n="AQAB"), "fewer than 2048"),
        (rsa_jwk(n="B" * 1370), "allowed are 8192"),
        (rsa_jwk(e="AQAAAAE"), "allowed are 8192 and 32"),
        (rsa_jwk(n=7), "has no `n` in base64url"),
        (rsa_jwk(n="a+b/"), "has no `n` in base64url"),
        ({**signers()["P-256"].jwk, "x": "AQAB"}, "keys[0]: "),
        ("text", "is no object"),
    ],
    ids=range(15),
)  # fmt: skip
def test_a_key_that_cannot_be_used_is_left_out_with_its_reason(key: Any, words: str) -> None:
    found, left_out = keys_of(set_of(key, signers()["P-384"].jwk))
    assert [one.kid for one in found] == ["P-384"] and len(left_out) == 1 and words in left_out[0]


def test_keys_for_encryption_are_none_of_ours() -> None:
    assert keys_of(set_of(rsa_jwk(use="enc"))) == ((), [])


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"keys": {}}', b"<html>", b"{" * 100_000, b" " * (1 << 18) + b" "]
)
def test_what_is_no_key_set_is_said(data: bytes) -> None:
    with pytest.raises(JwksError):
        keys_of(data)


def test_two_keys_with_one_id_are_refused() -> None:
    with pytest.raises(JwksError, match="two keys with the id rsa"):
        keys_of(set_of(rsa_jwk(), {**signers()["P-256"].jwk, "kid": "rsa"}))


def test_a_set_of_more_keys_than_an_issuer_has_is_refused() -> None:
    many = [{**signers()["P-256"].jwk, "kid": f"k{number}"} for number in range(65)]
    assert len(keys_of(set_of(*many[:64]))[0]) == 64
    with pytest.raises(JwksError, match="more than 64 keys"):
        keys_of(set_of(*many))


def from_file(tmp_path: Path, data: bytes | None) -> Any:
    if data is not None:
        (tmp_path / "keys.json").write_bytes(data)
    return read_jwks(stack(pool(), jwt={**JWT, "jwks": "keys.json"}), tmp_path, network=False)


def test_a_file_of_the_project_is_read_without_a_network(tmp_path: Path) -> None:
    found, findings = from_file(tmp_path, jwks("rsa"))
    assert [key.kid for key in found] == ["rsa"] and not findings


@pytest.mark.parametrize(
    ("data", "words"),
    [(None, "keys.json cannot be read: No such file"), (b"{}", "is no key set"), (b'{"keys": []}', "has no key that")],
)
def test_a_file_without_keys_is_an_error(tmp_path: Path, data: bytes | None, words: str) -> None:
    found, (finding,) = from_file(tmp_path, data)
    assert not found and words in finding.message and finding.severity is Severity.ERROR


def answered(monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, **headers: str) -> list[httpx2.Request]:
    """An issuer that answers so, below the real client."""
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(status, content=body, headers=headers)

    def stream(method: str, url: str, **keys: Any) -> Any:
        client = httpx2.Client(
            transport=httpx2.MockTransport(answer), timeout=keys["timeout"], follow_redirects=keys["follow_redirects"]
        )
        return client.stream(method, url)

    monkeypatch.setattr(httpx2, "stream", stream)
    return asked


def test_the_issuer_is_asked_only_where_something_is_deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answered(monkeypatch, 200, jwks("rsa"))
    shown, (notice,) = read_jwks(stack(pool(), jwt=JWT), tmp_path, network=False)
    assert not asked and not shown and notice.severity is Severity.NOTICE
    found, findings = read_jwks(stack(pool(), jwt=JWT), tmp_path, network=True)
    assert [key.kid for key in found] == ["rsa"] and not findings and str(asked[0].url) == JWT["jwks"]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [(200, b"<html>", "is no key set"), (200, b"x" * (2 << 20), "has more than 256 KiB")],
)
def test_an_issuer_that_gives_no_keys_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, words: str
) -> None:
    answered(monkeypatch, status, body)
    found, (finding,) = read_jwks(stack(pool(), jwt=JWT), tmp_path, network=True)
    assert not found and words in finding.message and finding.severity is Severity.ERROR


@pytest.mark.parametrize("status", [302, 503])
def test_an_issuer_that_does_not_answer_stops_a_run_that_deploys_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    asked = answered(monkeypatch, status, b"", location="http://elsewhere.example.org/keys")
    found, (finding,) = read_jwks(stack(pool(), jwt=JWT), tmp_path, network=True)
    assert not found and finding.severity is Severity.WARNING
    with pytest.raises(SetupError, match=f"jwt.jwks: {JWT['jwks']} answers with status {status}"):
        read_jwks(stack(pool(), jwt=JWT), tmp_path, network=False, needed=True)
    assert len(asked) == 2, "no redirect is followed"


def test_an_issuer_that_nobody_answers_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really asked, at a port where nobody listens."""
    monkeypatch.setattr(reading, "TIMEOUT_S", 2.0)
    found, (finding,) = read_jwks(stack(pool(), jwt={**JWT, "jwks": "https://127.0.0.1:9/k"}), tmp_path, network=True)
    assert not found and "does not answer" in finding.message
