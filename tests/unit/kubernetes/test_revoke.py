"""`modelfleet key revoke` in a cluster: what the next run would make, made at once, by an API server in memory."""

from __future__ import annotations

import asyncio
import base64
import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml

from modelfleet.cli import key, pulumi_run
from modelfleet.infra.gateway import keys_id, render_key_map
from modelfleet.infra.gateway.keys import Rotated, hash_key
from modelfleet.infra.kubernetes import revoke as module
from modelfleet.infra.kubernetes.api import ApiError
from modelfleet.infra.kubernetes.gateway import Gateway
from modelfleet.infra.kubernetes.manifests.gateway import LEAVE_SECONDS, gateway_deployment
from modelfleet.infra.kubernetes.manifests.secrets import gateway_keys
from modelfleet.infra.kubernetes.revoke import Revoked, revoke
from modelfleet.infra.kubernetes.secrets import Secrets
from modelfleet.infra.planning import Plan
from tests.unit.planning.builders import model, planned, pool, stack

KEYS = {"alice": "sk-alice-0123456789", "bob": "sk-bob-0123456789abc", "alice.2": "sk-alice2-0123456789"}
OLD = Rotated(hash_key("sk-alice-old-0123456789"), 4_000_000_000).text()
PLAN: Plan = planned([model()], stack(pool(instanceTypes=["g6.xlarge"])))


class Server:
    """Secret and Deployment as a run made them; pods roll `rolls` looks after a change of their template."""

    def __init__(self, *, rolls: int = 3) -> None:
        text = render_key_map({**KEYS, "alice@rotated": OLD})
        secret, deployment = gateway_keys(PLAN, text), gateway_deployment(PLAN, keys_id(text))
        encoded = {name: base64.b64encode(one.encode()).decode() for name, one in secret.pop("stringData").items()}
        deployment["metadata"]["generation"] = 1
        self.kept = {"Secret": {**secret, "data": encoded}, "Deployment": deployment}
        self.rolls, self.left = rolls, 0
        self.steps: list[str] = []
        self.between: Callable[[], Any] = lambda: None

    def get(self, version: str, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        one = copy.deepcopy(self.kept.get(kind))
        assert one is None or (one["apiVersion"], one["metadata"]["name"]) == (version, name)
        if one is not None and kind == "Deployment":
            count, self.left = one["spec"]["replicas"], max(0, self.left - 1)
            generation = one["metadata"]["generation"] - (self.left > 1)
            new = 0 if self.left else count
            one["status"] = {
                "observedGeneration": generation, "updatedReplicas": new, "replicas": count, "availableReplicas": count,
            }  # fmt: skip
        return one

    def patch_parts(self, version: str, kind: str, name: str, namespace: str, changes: list[dict[str, Any]]) -> None:
        self.between()
        data = self.kept[kind]["data"]
        for change in changes:
            part = change["path"].removeprefix("/data/")
            if change["op"] == "test" and data[part] != change["value"]:
                raise ApiError(422, "Invalid", "the test failed")
            if change["op"] == "replace":
                data[part] = change["value"]
        self.steps.append(kind)

    def merge(self, version: str, kind: str, name: str, namespace: str, patch: dict[str, Any]) -> None:
        annotations = self.kept[kind]["spec"]["template"]["metadata"]["annotations"]
        before = dict(annotations)
        annotations |= patch["spec"]["template"]["metadata"]["annotations"]
        if before != annotations:
            self.left = self.rolls
            self.kept[kind]["metadata"]["generation"] += 1
            self.steps.append(kind)

    @property
    def key_map(self) -> str:
        return base64.b64decode(self.kept["Secret"]["data"]["keys.map"]).decode()

    def of_next_run(self, keys: dict[str, str]) -> None:
        """What `up` makes of the keys that are left is what is there, so it changes nothing."""
        text = render_key_map(keys)
        assert self.key_map == text
        template = gateway_deployment(PLAN, keys_id(text))["spec"]["template"]
        assert self.kept["Deployment"]["spec"]["template"] == template


def taken(server: Server, *names: str, pauses: list[float] | None = None) -> Revoked:
    return revoke(server, PLAN.namespace, names, pause=(pauses if pauses is not None else []).append)  # type: ignore[arg-type]


def test_a_revoked_key_is_gone_with_its_old_secret_and_the_next_run_agrees() -> None:
    server, pauses = Server(), list[float]()
    assert taken(server, "alice", pauses=pauses) == Revoked(2, rolled=True)
    assert server.steps == ["Secret", "Deployment"], "a pod that starts in between does not know it"
    assert pauses == [1.0, 1.0, LEAVE_SECONDS], "until the pods are new, and the old ones have their stop signal"
    server.of_next_run({name: one for name, one in KEYS.items() if name != "alice"})


def test_twice_is_once() -> None:
    """Also where the first time was cut between Secret and Deployment."""
    server = Server()
    with suppress(RuntimeError):
        server.merge = lambda *_: (_ for _ in ()).throw(RuntimeError)  # type: ignore[method-assign, assignment]
        taken(server, "bob")
    del server.merge  # type: ignore[method-assign]
    assert taken(server, "bob").secrets == 0
    server.of_next_run({"alice": KEYS["alice"], "alice.2": KEYS["alice.2"], "alice@rotated": OLD})
    before = list(server.steps)
    assert taken(server, "bob") == Revoked(0, rolled=True) and server.steps == before


def test_another_run_at_the_same_moment_loses_no_key() -> None:
    server = Server()
    added = render_key_map({**KEYS, "carol": "sk-carol-0123456789"})

    def once() -> None:
        server.kept["Secret"]["data"]["keys.map"] = base64.b64encode(added.encode()).decode()
        server.between = lambda: None

    server.between = once
    assert taken(server, "alice").secrets == 1
    assert "carol" in server.key_map and " alice\n" not in server.key_map


def test_pods_that_do_not_become_new_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROLLED_S", 5)
    assert taken(Server(rolls=1000), "alice") == Revoked(2, rolled=False)


def test_without_a_gateway_there_is_nothing_to_take_out() -> None:
    server = Server()
    server.kept.clear()
    assert taken(server, "alice") == Revoked(None, rolled=True)


def test_a_run_takes_over_what_revoke_wrote() -> None:
    """Else the next run that changes a key meets another owner of the same field, and fails."""

    class Recorder(pulumi.runtime.Mocks):
        def __init__(self) -> None:
            self.made = dict[str, dict[Any, Any]]()

        def call(self, args: pulumi.runtime.MockCallArgs) -> Any:
            return {}, []

        def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
            self.made[args.name] = args.inputs
            return args.name, args.inputs

    recorder = Recorder()
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(recorder)

    def program() -> None:
        made = Secrets("s", PLAN, huggingface_token=None, api_keys=pulumi.Output.from_input(KEYS))
        Gateway("g", PLAN, keys_id=made.keys_id)

    pulumi.runtime.test(program)()
    for name in ("s-gateway-keys", "g-deployment"):
        assert recorder.made[name]["metadata"]["annotations"] == {"pulumi.com/patchForce": "true"}, name
    template = recorder.made["g-deployment"]["spec"]["template"]
    assert template["metadata"]["annotations"]["modelfleet.dev/keys"] == keys_id(render_key_map(KEYS))


@pytest.mark.parametrize(
    ("rolls", "said", "code"),
    [(3, "revoked; the gateway refuses it from now on (2 secrets)", 0), (10**6, "may still know it", 2)],
)
def test_the_command_takes_it_out_of_the_cluster_before_the_stacks_file(
    rolls: int,
    said: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "ROLLED_S", 5)
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    (tmp_path / "stacks").mkdir()
    secret = {name: {"secure": f"v1:{name}"} for name in ("alice", "bob")}
    config = {"modelfleet:target": "kubernetes", "modelfleet:models": ["*"], "modelfleet:apiKeys": secret}
    (tmp_path / "stacks" / "Pulumi.prod.yaml").write_text(yaml.safe_dump({"config": config}))
    monkeypatch.chdir(tmp_path)
    server, removed = Server(rolls=rolls), list[list[str]]()
    (first, _) = server.kept["Deployment"]["spec"]["template"]["spec"]["containers"]
    first["lifecycle"]["preStop"]["exec"]["command"] = ["sleep", "0"]
    server.close = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr("modelfleet.doctor.readers.cluster.connect", lambda subject: server)
    monkeypatch.setattr(pulumi_run, "remove_config", lambda root, stack, path: removed.append(list(server.steps)))
    assert key.run_revoke("prod", "alice") == code
    assert removed == [["Secret", "Deployment"]], "whoever revokes is in a hurry"
    assert said in " ".join(capsys.readouterr().err.split())
