"""What each key may do: its own models, limits, team and end. The replica hears who asked."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.gateway.keys import Rotated, hash_key
from modelfleet.infra.local import haproxy
from modelfleet.infra.planning.plan import AllowancePlan, KeyPlan
from modelfleet.serving.config.errors import SetupError
from tests.gateway.conftest import ALICE, BOB, KEYS, Gateway, Make

CHAT = "/v1/chat/completions"
DIRECT = "/org--large/v1/chat/completions"
#: Alice has one adapter and the small model, Bob everything.
ALICE_MAY = KeyPlan("alice", models=("org/large-lora", "small"), team="web")


@pytest.fixture(scope="module")
def gateway(make_gateway: Make) -> Gateway:
    return make_gateway(who=(ALICE_MAY, KeyPlan("bob")), teams=(AllowancePlan("web"),))


def test_a_key_uses_its_own_models_only(gateway: Gateway) -> None:
    for model, status in {"small": 200, "org/large-lora": 200, "org/large": 404}.items():
        assert gateway.post(CHAT, {"model": model}).status_code == status, model
        assert gateway.post(CHAT, {"model": model}, key=BOB).status_code == 200, model


def test_a_model_of_others_is_refused_as_one_that_does_not_exist(gateway: Gateway) -> None:
    refused, unknown = (gateway.post(CHAT, {"model": model}) for model in ("org/large", "no/large"))
    assert refused.status_code == unknown.status_code == 404
    assert refused.json() == json.loads(unknown.text.replace("no\\/large", "org\\/large"))
    assert refused.json()["error"]["message"].endswith("Valid aliases: org/large-lora, small.")


def test_the_list_of_models_is_the_keys_own(gateway: Gateway) -> None:
    def listed(key: str, path: str = "/v1/models") -> list[str]:
        return [one["id"] for one in gateway.get(path, key).json()["data"]]

    assert listed(ALICE) == ["org/large-lora", "small"]
    assert listed(BOB) == ["org/large", "org/large-lora", "small"]
    assert listed(ALICE, "/org--large/v1/models") == ["org/large-lora"]
    assert gateway.get("/v1/models/org/large").status_code == 404
    assert gateway.get("/v1/models/org/large", BOB).status_code == 200
    assert gateway.get("/v1/models/org--large-lora").json()["id"] == "org/large-lora"


def test_a_names_message_lists_the_keys_own_models(gateway: Gateway) -> None:
    assert gateway.post(CHAT, {"prompt": "x"}).json()["error"]["message"].endswith("serves org/large-lora, small.")


def test_readiness_names_no_model_where_some_are_hidden(gateway: Gateway) -> None:
    assert "large" not in gateway.get("/ready", None).text


def test_below_a_models_own_path_the_body_names_what_the_key_may_use(gateway: Gateway) -> None:
    assert gateway.post(DIRECT, {"model": "org/large-lora"}).status_code == 200
    for body in ({"model": "org/large"}, {}, {"model": None}, {"model": "small"}):
        assert gateway.post(DIRECT, body).status_code == 404, body
    assert gateway.post("/small/v1/completions", {}).status_code == 200
    assert gateway.post(DIRECT, {}, key=BOB).status_code == 200


def test_a_model_without_any_name_for_the_key_has_no_path(make_gateway: Make) -> None:
    gateway = make_gateway(who=(KeyPlan("alice", models=("small",)),))
    hidden = gateway.post(DIRECT, {"model": "small"})
    nothing = gateway.post("/nothing/v1/chat/completions", {})
    assert hidden.status_code == 404 and hidden.text == nothing.text.replace("nothing", "org--large")
    assert gateway.get("/org--large/health").status_code == 404
    assert gateway.get("/small/health").status_code == 200


HIDDEN = '{"model": "org/large-lora", "model": "org/large"}'


@pytest.mark.parametrize("path", [CHAT, DIRECT])
@pytest.mark.parametrize(
    "text",
    [
        HIDDEN,
        HIDDEN.replace('"model": "org/large"', '"mod\\u0065l": "org/large"'),
        HIDDEN.replace('"org/large-lora", ', '"org/large-lora", "filler": "' + "x" * 300_000 + '", '),
    ],
    ids=["plain", "escaped", "beyond the first buffer"],
)
def test_a_second_model_in_the_body_opens_nothing(gateway: Gateway, path: str, text: str) -> None:
    before = len(gateway.backend.seen)
    answer = gateway.post(path, key=ALICE, data=text, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "more than once" in answer.text
    assert len(gateway.backend.seen) == before


@pytest.mark.parametrize("path", [CHAT, DIRECT])
def test_a_large_body_uses_its_own_models_only_too(gateway: Gateway, path: str) -> None:
    for body, status in (
        ({"model": "org/large"}, 404),
        ({"model": "org/large-lora"}, 200),
    ):
        for order in (dict, lambda many: dict(reversed(many.items()))):
            whole = order({**body, "messages": [{"role": "user", "content": "x" * 400_000}]})
            assert gateway.post(path, whole).status_code == status, (path, body)
            assert chunked(gateway, path, whole) == status, (path, body)


SPEECH = "/v1/audio/transcriptions"
FORM_TYPE = "multipart/form-data; boundary=x"


def form(*fields: tuple[str, str]) -> bytes:
    """A form whose parts have these parameters after `form-data`, and these values."""
    parts = [f"--x\r\nContent-Disposition: form-data{given}\r\n\r\n{value}\r\n" for given, value in fields]
    return ("".join(parts) + "--x--\r\n").encode("latin-1")


OWN, OTHER = ('; name="model"', "org/large-lora"), "org/large"


@pytest.mark.parametrize("path", [SPEECH, f"/org--large{SPEECH}"])
@pytest.mark.parametrize(
    ("content_type", "data"),
    [
        (FORM_TYPE, form(OWN, ('; Name="model"', OTHER))),
        (FORM_TYPE, form(OWN, ('; name = "model"', OTHER))),
        (FORM_TYPE, form(OWN, (';name=model', OTHER))),
        (FORM_TYPE, form(OWN, ('; name="other"; NAME="model"', OTHER))),
        (FORM_TYPE, form(('; name="model"; name="other"', "org/large-lora"))),
        (FORM_TYPE, form(OWN, (';\xa0name="model"', OTHER))),
        (FORM_TYPE + "; charset=utf-7", form(OWN, ('; name="+AG0-odel"', OTHER))),
        (FORM_TYPE.replace("boundary=x", "xboundary=y; boundary=x"), form(('; name="model"', OTHER))
         + form(OWN).replace(b"--x", b"--y")),
        (FORM_TYPE, form(('; name="file"', "\r\n--xy\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nsmall"))),
        (FORM_TYPE, form(('; name="file"', "1")) + form(OWN)),
    ],
    ids=["case", "blanks", "no quotes", "the last of two", "the first of two", "odd blank", "charset", "two boundaries",
         "no boundary", "after the end"],
)  # fmt: skip
def test_a_form_opens_no_model_of_others(gateway: Gateway, path: str, content_type: str, data: bytes) -> None:
    """The engine's own parser read another model than the gateway, or none, which is the base model."""
    before = len(gateway.backend.seen)
    answer = gateway.post(path, data=data, headers={"content-type": content_type})
    assert answer.status_code in (400, 404), answer.text
    assert len(gateway.backend.seen) == before


@pytest.mark.parametrize("given", ['; name="model"', '; Name="model"', '; name = "model"', "; name=model"])
def test_a_form_names_its_model_in_any_spelling_that_the_engine_reads(gateway: Gateway, given: str) -> None:
    data = form(('; name="file"; filename="a.wav"', "\r\n--xyz\r\n"), (given, "org/large-lora"))
    for key in (ALICE, BOB):
        answer = gateway.post(SPEECH, data=data, key=key, headers={"content-type": FORM_TYPE})
        assert answer.status_code == 200 and answer.json()["path"] == f"/org--large{SPEECH}", answer.text


def test_a_team_named_0_has_its_limits(make_gateway: Make) -> None:
    who = (KeyPlan("alice", team="0"),)
    gateway = make_gateway(who=who, teams=(AllowancePlan("0", requests_per_minute=1),))
    assert [gateway.post(CHAT, {"model": "small"}).status_code for _ in range(2)] == [200, 429]


def chunked(gateway: Gateway, path: str, body: dict[str, Any]) -> int:
    text = json.dumps(body).encode()
    return gateway.post(path, data=iter([text[:1000], text[1000:]])).status_code


def test_the_replica_hears_the_key_and_its_team_from_the_gateway_alone(gateway: Gateway) -> None:
    forged = {
        "x-modelfleet-key": "bob",
        "x-modelfleet-team": "other",
        "X-Modelfleet-Class": ":c9",
        "x_modelfleet_key": "bob",
    }
    gateway.post(CHAT, {"model": "small"}, headers=forged)
    seen = gateway.backend.last.headers
    assert seen["x-modelfleet-key"] == "alice" and seen["x-modelfleet-team"] == "web"
    assert "x_modelfleet_key" not in seen
    gateway.post(CHAT, {"model": "small"}, key=BOB, headers=forged)
    assert "x-modelfleet-team" not in gateway.backend.last.headers


def test_a_key_ends_at_its_time(make_gateway: Make) -> None:
    now = int(time.time())
    gateway = make_gateway(who=(KeyPlan("alice", ends_at=now - 1), KeyPlan("bob", ends_at=now + 3600)))
    ended = gateway.post(CHAT, {"model": "small"})
    assert ended.status_code == 401 and ended.json()["error"]["type"] == "AuthenticationError"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - 1))
    assert ended.json()["error"]["message"] == f"This API key ended at {stamp}."
    assert gateway.get("/v1/models").status_code == 401
    assert gateway.post(CHAT, {"model": "small"}, key=BOB).status_code == 200


def test_after_a_rotation_both_secrets_are_valid_until_the_old_one_ends(make_gateway: Make) -> None:
    new, old, late = "sk-alice-new-0123456789", ALICE, int(time.time()) + 3600
    gateway = make_gateway(keys={**KEYS, "alice": new, "alice@rotated": Rotated(hash_key(old), late).text()})
    for secret in (old, new):
        gateway.post(CHAT, {"model": "small"}, key=secret)
        assert gateway.backend.last.headers["x-modelfleet-key"] == "alice"
    haproxy.set_keys(gateway.runtime, {**KEYS, "alice": new, "alice@rotated": Rotated(hash_key(old), 1).text()})
    ended = gateway.post(CHAT, {"model": "small"}, key=old)
    assert ended.status_code == 401 and "ended at 1970-01-01T00:00:01Z" in ended.text
    assert gateway.post(CHAT, {"model": "small"}, key=new).status_code == 200


def test_a_revoked_key_is_refused_at_once_and_after_a_reload(make_gateway: Make) -> None:
    gateway = make_gateway()
    assert haproxy.revoke(gateway.runtime, {"alice"}) == 1
    assert gateway.post(CHAT, {"model": "small"}).status_code == 401
    gateway.keys = None  # the file, as `revoke` left it
    gateway.up()
    assert gateway.post(CHAT, {"model": "small"}).status_code == 401
    assert gateway.post(CHAT, {"model": "small"}, key=BOB).status_code == 200


def test_a_key_is_revoked_in_the_file_of_a_gateway_that_died(make_gateway: Make) -> None:
    gateway = make_gateway()
    gateway.down()
    with pytest.raises(haproxy.NoGatewayError):
        haproxy.revoke(gateway.runtime, {"alice"})
    gateway.keys = None
    gateway.processes = None
    gateway.up()
    assert gateway.post(CHAT, {"model": "small"}).status_code == 401
    assert gateway.post(CHAT, {"model": "small"}, key=BOB).status_code == 200


def test_a_gateway_that_does_not_take_a_key_out_is_no_success(make_gateway: Make, tmp_path: Path) -> None:
    """Another map's file, which the running gateway does not know."""
    gateway = make_gateway()
    other = tmp_path / "keys.map"
    other.write_text(Path(gateway.runtime.key_map).read_text())
    with pytest.raises(SetupError, match="did not take a key out") as caught:
        haproxy.revoke(replace(gateway.runtime, key_map=str(other)), {"alice"})
    assert not isinstance(caught.value, haproxy.NoGatewayError)
    assert gateway.post(CHAT, {"model": "small"}).status_code == 200


def test_ten_thousand_keys_come_into_force_in_a_few_commands(
    make_gateway: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = make_gateway(who=tuple(KeyPlan(f"key-{number}", 5) for number in range(10_000)))
    many = {f"key-{number}": f"sk-number-{number:016}" for number in range(10_000)}
    asked: list[str] = []
    ask = haproxy.ask
    monkeypatch.setattr(haproxy, "ask", lambda path, command: asked.append(command) or ask(path, command))
    haproxy.set_keys(gateway.runtime, many)
    assert len(asked) <= 12, "a command for each key takes seconds"
    assert gateway.post(CHAT, {"model": "small"}, key=many["key-9999"]).status_code == 200
    assert gateway.post(CHAT, {"model": "small"}).status_code == 401


def test_each_key_has_its_own_limits_and_others_those_of_the_gateway(make_gateway: Make) -> None:
    gateway = make_gateway(requests_per_minute=3, who=(KeyPlan("alice", requests_per_minute=2),))

    def allowed(key: str) -> list[int]:
        return [gateway.post(CHAT, {"model": "small"}, key=key).status_code for _ in range(4)]

    assert allowed(ALICE) == [200, 200, 429, 429]
    assert allowed(BOB) == [200, 200, 200, 429]
    assert "allowed are 2 per minute" in gateway.post(CHAT, {"model": "small"}).json()["error"]["message"]


def test_the_keys_of_a_team_share_its_limits(make_gateway: Make) -> None:
    both = (KeyPlan("alice", team="web"), KeyPlan("bob", team="web"))
    gateway = make_gateway(who=both, teams=(AllowancePlan("web", requests_per_minute=3),))
    answers = [gateway.post(CHAT, {"model": "small"}, key=key) for key in (ALICE, BOB, ALICE, BOB)]
    assert [one.status_code for one in answers] == [200, 200, 200, 429]
    assert "API key's team; allowed are 3 per minute" in answers[-1].json()["error"]["message"]
    assert int(answers[-1].headers["retry-after"]) > 0


def test_tokens_per_minute_are_the_keys_and_the_teams(make_gateway: Make) -> None:
    gateway = make_gateway(
        who=(KeyPlan("alice", tokens_per_minute=150, team="web"), KeyPlan("bob", team="web")),
        teams=(AllowancePlan("web", tokens_per_minute=400),),
    )
    ask = {"model": "small", "max_tokens": 100}

    def status(key: str) -> int:
        return gateway.post(CHAT, ask, key=key).status_code

    assert [status(ALICE) for _ in range(3)] == [200, 200, 429]
    assert [status(BOB) for _ in range(3)] == [200, 200, 429]


def test_open_requests_are_the_keys_and_the_teams(make_gateway: Make) -> None:
    gateway = make_gateway(
        who=(KeyPlan("alice", concurrent_requests=1, team="web"), KeyPlan("bob", team="web")),
        teams=(AllowancePlan("web", concurrent_requests=2),),
    )
    gateway.backend.events, gateway.backend.pause_s = 600, 0.1  # open for a minute, unless it is closed
    ask = {"model": "small", "stream": True}
    first = gateway.post(CHAT, ask, stream=True)
    assert gateway.post(CHAT, ask).status_code == 429
    second = gateway.post(CHAT, ask, key=BOB, stream=True)
    assert second.status_code == 200 and gateway.post(CHAT, ask, key=BOB).status_code == 429
    first.close()
    second.close()
