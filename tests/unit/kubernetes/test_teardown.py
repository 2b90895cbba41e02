"""How `modelfleet down` handles Ray objects without an operator, before Pulumi waits for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelfleet.cli import down
from modelfleet.infra.kubernetes import teardown
from modelfleet.infra.stack.schema import StackConfig

KUBECONFIG = json.dumps(
    {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
)


class Cluster:
    """One RayService with a finalizer, and an operator in `operator`."""

    def __init__(self, operator: str | None) -> None:
        self.operator = operator
        self.patched: list[str] = []

    def get(self, version: str, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        if kind == "Deployment":
            return {"status": {"availableReplicas": 1}} if namespace == self.operator else None
        return {}

    def list(self, version: str, kind: str, namespace: str) -> list[dict[str, Any]]:
        meta = {"name": "fleet", "finalizers": ["ray.io/x"]}
        return [{"metadata": meta}] if kind == "RayService" else []

    def close(self) -> None:
        """There is nothing to close."""

    def merge(self, version: str, kind: str, name: str, namespace: str, patch: dict[str, Any]) -> None:
        assert patch == {"metadata": {"finalizers": None}}
        self.patched.append(f"{kind} {namespace}/{name}")


def config(target: str, **kubernetes: str) -> StackConfig:
    return StackConfig.model_validate({"models": ["*"], "target": target, "kubernetes": kubernetes})


@pytest.mark.parametrize(
    ("operator", "settings", "expected"),
    [
        pytest.param("modelfleet-dev", {}, [], id="its-own-operator-is-there"),
        pytest.param(None, {}, ["RayService modelfleet-dev/fleet"], id="it-is-gone"),
        pytest.param("kuberay", {"operatorNamespace": "kuberay"}, [], id="the-clusters-operator-is-there"),
        pytest.param("kuberay", {}, ["RayService modelfleet-dev/fleet"], id="another-that-is-not-ours"),
    ],
)
def test_finalizers_are_removed_only_if_no_operator_is_left_to_do_it(
    monkeypatch: pytest.MonkeyPatch, operator: str | None, settings: dict[str, str], expected: list[str]
) -> None:
    cluster = Cluster(operator)
    monkeypatch.setattr(teardown.Api, "from_kubeconfig", lambda *where: cluster)
    teardown.release_orphans(config("kubernetes", **settings).kubernetes, "dev")
    assert cluster.patched == expected


def test_an_eks_stack_is_released_through_the_kubeconfig_that_it_exports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster, seen = Cluster(None), []
    monkeypatch.setattr(down.pulumi_run, "ask", lambda root, arguments: KUBECONFIG)
    monkeypatch.setattr(teardown.Api, "from_kubeconfig", lambda *where: seen.append(where) or cluster)
    down._release(tmp_path, config("eks"), "dev")
    assert seen == [(KUBECONFIG, None)] and cluster.patched == ["RayService modelfleet-dev/fleet"]


def test_an_eks_cluster_that_is_already_gone_does_not_stop_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(down.pulumi_run, "ask", lambda root, arguments: KUBECONFIG)
    down._release(tmp_path, config("eks"), "dev")
    assert "no Kubernetes API answers at https://127.0.0.1:1" in " ".join(capsys.readouterr().err.split())
