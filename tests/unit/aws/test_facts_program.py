"""What the program reads of the stack's cluster through the provider: listed once, and each refusal is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pulumi
import pytest

from modelfleet.infra.aws import facts_program
from modelfleet.infra.aws.facts import CLUSTER, LIVE_SIZES, AccountFacts, ClusterFact
from tests.unit.aws.builders import planned

OPTS = pulumi.InvokeOptions()
NAME = "modelfleet-test"


class Provider:
    """Stands in for the `aws` package: only EKS has something, and each of its functions may refuse."""

    def __init__(self, *clusters: str, refuses: str = "") -> None:
        self.clusters, self.refuses, self.called = clusters, refuses, list[str]()

    def eks(self) -> Any:
        groups = {"l4-a": ("l4", 2), "l4-b": ("l4", 3), "system": ("system", 1)}

        def group(cluster_name: str, node_group_name: str, **_: Any) -> Any:
            name, size = groups[node_group_name]
            status = "CREATE_FAILED" if node_group_name == "l4-b" else "ACTIVE"
            sizes = [SimpleNamespace(desired_size=size)]
            version = "1.34" if node_group_name == "l4-a" else "1.35"
            return SimpleNamespace(tags={"Name": name}, scaling_configs=sizes, status=status, version=version)

        answers: dict[str, Callable[..., Any]] = {
            "get_clusters": lambda **_: SimpleNamespace(names=list(self.clusters)),
            "get_cluster": lambda **_: SimpleNamespace(endpoint="", version="1.35"),
            "get_node_groups": lambda **_: SimpleNamespace(names=list(groups)),
            "get_node_group": group,
        }
        return SimpleNamespace(**{name: self._counted(name, answer) for name, answer in answers.items()})

    def _counted(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def call(**params: Any) -> Any:
            self.called.append(name)
            if name == self.refuses:
                raise RuntimeError(f"invoking {name} returned an error: AccessDenied")
            return answer(**params)

        return call


def read(provider: Provider, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AccountFacts:
    nothing = SimpleNamespace(account_id="1", arn="a", partition="aws", region="us-west-2", issuer_arn="r")
    fake = SimpleNamespace(
        eks=provider.eks(),
        iam=SimpleNamespace(get_session_context=lambda **_: nothing),
        **{f"get_{name}": lambda **_: nothing for name in ("caller_identity", "partition", "region")},
    )
    monkeypatch.setattr(facts_program, "aws", fake)
    monkeypatch.setattr(facts_program, "why_unreachable", lambda endpoint: None)
    monkeypatch.setattr(facts_program, "_quotas", lambda *_: ({}, {}))
    for name, value in {
        "_zones": (),
        "_offerings": {},
        "_subnets": (),
        "_vpc_without": (),
        "_other_addresses": 0,
    }.items():
        monkeypatch.setattr(facts_program, name, lambda *_, value=value: value)
    for name in ("_has_log_group", "_lacks_image"):
        monkeypatch.setattr(facts_program, name, lambda *_: False)
    plan, _ = planned(folder)
    return facts_program._read(plan, OPTS)


def test_the_clusters_are_listed_once_for_all_that_is_read_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider(NAME)
    facts = read(provider, tmp_path, monkeypatch)
    assert (facts.cluster, facts.live_nodes, facts.unread) == (
        ClusterFact(None, "1.35"),
        {"l4": 3, "system": 1},
        {},
    )
    assert facts.group_versions == {"l4-a": "1.34", "l4-b": "1.35", "system": "1.35"}
    assert facts.failed_groups == ("l4-b",)
    assert provider.called.count("get_clusters") == 1


def test_of_a_cluster_that_is_not_there_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider("another")
    facts = read(provider, tmp_path, monkeypatch)
    assert (facts.cluster, facts.live_nodes, facts.unread) == (None, {}, {})
    assert provider.called == ["get_clusters"]


@pytest.mark.parametrize(
    ("refuses", "unread"),
    [
        ("get_clusters", {CLUSTER, LIVE_SIZES}),
        ("get_cluster", {CLUSTER}),
        ("get_node_groups", {LIVE_SIZES}),
        ("get_node_group", {LIVE_SIZES}),
    ],
)
def test_what_aws_refuses_is_told_and_the_rest_is_read(
    refuses: str, unread: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = read(Provider(NAME, refuses=refuses), tmp_path, monkeypatch)
    assert facts.unread == dict.fromkeys(unread, "AccessDenied")
    assert bool(facts.live_nodes) is (LIVE_SIZES not in unread)
