"""A preview's messages about the live Ray cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pulumi
import pytest

from modelfleet.infra.kubernetes import operator, rollout
from modelfleet.infra.kubernetes.fleet import KubernetesFleet
from modelfleet.infra.kubernetes.manifests.ray import ray_service
from modelfleet.infra.kubernetes.rollout import rebuild_notice, rebuilds, rollout_notice, sentence
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.rollout import second_cluster
from tests.cluster.fleet import model, planned
from tests.unit.planning import builders
from tests.unit.planning.builders import pool, stack

L4 = {"name": "l4", "accelerator": "L4", "maxNodes": 3, "instanceTypes": ["g6.2xlarge"]}
T4 = {"name": "t4", "accelerator": "T4", "maxNodes": 2, "instanceTypes": ["g4dn.12xlarge"]}


class Live:
    """A cluster that holds one RayService."""

    def __init__(self, service: dict[str, Any] | None) -> None:
        self._service = service

    def close(self) -> None:
        """There is nothing to close."""

    def get(self, *where: str) -> dict[str, Any] | None:
        return self._service

    def list(self, *where: str) -> list[dict[str, Any]]:
        return []


def plan(root: Path, pools: list[dict[str, Any]], **kubernetes: Any) -> Plan:
    return planned(root, [model("org/one", "L4")], pools=pools, kubernetes=kubernetes)


@pytest.mark.parametrize(
    ("pools", "kubernetes", "expected"),
    [
        pytest.param([L4], {}, False, id="nothing"),
        pytest.param([{**L4, "maxNodes": 9, "minNodes": 1}], {}, False, id="more-nodes"),
        pytest.param([L4, T4], {}, False, id="a-pool-appended"),
        pytest.param([T4, L4], {}, True, id="a-pool-before"),
        pytest.param([{**L4, "instanceTypes": ["g6.4xlarge"]}], {}, True, id="another-instance-type"),
        pytest.param([L4], {"image": "other:2"}, True, id="another-image"),
    ],
)
def test_only_changes_that_kuberay_rebuilds_for_are_called_a_rebuild(
    tmp_path: Path, pools: list[dict[str, Any]], kubernetes: dict[str, Any], expected: bool
) -> None:
    assert rebuilds(ray_service(plan(tmp_path / "a", [L4])), plan(tmp_path / "b", pools, **kubernetes)) is expected


def test_a_surge_says_how_many_gpus_it_needs_and_for_how_long(tmp_path: Path) -> None:
    live = Live(ray_service(plan(tmp_path / "a", [L4, T4])))
    notice = rollout_notice(live, plan(tmp_path / "b", [L4, T4], image="other:2"))  # type: ignore[arg-type]
    # One L4 node is needed at once; with both pools full, 3 L4 and 2 x 4 T4.
    assert notice is not None and "1 to 11 more GPUs (1 to 5 nodes) for about 5 min" in notice and "3600 s" in notice


def test_a_surge_says_what_the_second_cluster_costs_until_the_first_is_gone() -> None:
    """KubeRay keeps the old cluster for `gateway.timeoutS`, also when nothing streams any more."""
    pools = stack(pool(instanceTypes=["g6.xlarge"]), gateway={"timeoutS": 18000})
    plan = builders.planned([builders.model(replicas=(2, 2))], pools)
    assert plan.pools[0].usd_per_node_hour == 0.8048
    # Two nodes for six minutes and five hours.
    assert sentence(plan).endswith(
        "18000 s longer for open streams (gateway.timeoutS); about 8 USD at the fewest replicas"
    )
    assert second_cluster(plan).usd == pytest.approx(8.21, abs=0.01)


def test_a_surge_of_unknown_price_names_none(tmp_path: Path) -> None:
    assert second_cluster(plan(tmp_path, [{**L4, "instanceTypes": ["g6.2xlarge"]}])).usd is None, "no region is set"


def test_the_minutes_are_those_of_the_slowest_model_as_the_plan_shows_them(tmp_path: Path) -> None:
    """Two estimates of one start were in one plan: 17 minutes here, and 8.5 in its table."""
    large = model("meta-llama/Llama-2-70b-chat-hf", "A100-80G", workers=4)
    pool = {"name": "a100", "accelerator": "A100-80G", "maxNodes": 1, "instanceTypes": ["p4de.24xlarge"]}
    made = planned(tmp_path, [model("org/one", "L4"), large], pools=[L4, pool])
    more, start = second_cluster(made), made.models[0].start
    assert start is not None and round(start.seconds) == 510
    assert (more.minutes, more.slowest) == (9, "meta-llama/Llama-2-70b-chat-hf")
    assert (more.least_gpus, more.most_gpus, more.least_nodes, more.most_nodes) == (9, 11, 2, 4)


def test_a_replace_says_for_how_long_nothing_answers(tmp_path: Path) -> None:
    live = Live(ray_service(plan(tmp_path / "a", [L4])))
    notice = rollout_notice(live, plan(tmp_path / "b", [L4], image="other:2", rollout="replace"))  # type: ignore[arg-type]
    assert notice is not None and "no model answers for about 5 min" in notice


class Nothing(pulumi.runtime.Mocks):
    """An engine that makes every resource."""

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        return args.name, dict(args.inputs)

    def call(self, args: pulumi.runtime.MockCallArgs) -> Any:
        return {}, []


@pytest.mark.parametrize(
    ("preview", "image", "expected"),
    [
        pytest.param(
            True, "other:2", ["rollout surge: KubeRay builds a second Ray cluster"], id="a-preview-of-another-image"
        ),
        pytest.param(True, None, [], id="a-preview-without-change"),
        pytest.param(
            False, "other:2", ["rollout surge: KubeRay builds a second Ray cluster"], id="a-run-without-preview"
        ),
    ],
)
def test_a_preview_of_an_eks_stack_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preview: bool, image: str | None, expected: list[str]
) -> None:
    """There the kubeconfig is an output, which a preview knows once the cluster exists."""
    live = ray_service(planned(tmp_path, [model("org/one", "L4")], pools=[L4], target="eks"))
    settings = {"image": image} if image else {}
    new = planned(tmp_path, [model("org/one", "L4")], pools=[L4], target="eks", kubernetes=settings)
    asked: list[str] = []
    said: list[str] = []

    def connect(kubeconfig: str, *_: object) -> Live:
        asked.append(kubeconfig)
        return Live(live)

    monkeypatch.setattr(rollout.Api, "from_kubeconfig", connect)
    monkeypatch.setattr(pulumi.log, "warn", said.append)
    monkeypatch.setattr(operator, "custom_resource_definitions", list)
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(Nothing(), project="modelfleet", stack="test", preview=preview)

    @pulumi.runtime.test
    def program() -> pulumi.Output[str]:
        kubeconfig = pulumi.Output.from_input("the kubeconfig")
        KubernetesFleet("fleet", new, kubeconfig=kubeconfig)
        return kubeconfig

    program()
    assert [text[: len(wanted)] for text, wanted in zip(said, expected, strict=True)] == expected
    assert set(asked) == {"the kubeconfig"}


def test_a_cluster_that_does_not_answer_the_preview_is_reported(tmp_path: Path) -> None:
    notice = rebuild_notice("{}", plan(tmp_path, [L4]), preview=True)
    assert (
        notice is not None
        and "cannot tell whether the live Ray cluster will be rebuilt: the kubeconfig cannot be used: contexts has no None, only none"
        in notice
    )
    assert rebuild_notice("{}", plan(tmp_path, [L4]), preview=False) is None


def test_a_first_deployment_says_nothing(tmp_path: Path) -> None:
    assert rollout_notice(Live(None), plan(tmp_path, [L4])) is None  # type: ignore[arg-type]
