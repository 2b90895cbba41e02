"""What a preview says about the live Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.kubernetes.manifests.ray import ray_service
from infra.kubernetes.rollout import rebuilds, rollout_notice
from infra.planning import Plan
from tests.cluster.fleet import model, planned

L4 = {"name": "l4", "accelerator": "L4", "maxNodes": 3, "instanceTypes": ["g6.2xlarge"]}
T4 = {"name": "t4", "accelerator": "T4", "maxNodes": 2, "instanceTypes": ["g4dn.12xlarge"]}


class Live:
    """A cluster that holds one RayService."""

    def __init__(self, service: dict[str, Any] | None) -> None:
        self._service = service

    def get(self, *where: str) -> dict[str, Any] | None:
        return self._service


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
def test_only_what_kuberay_rebuilds_for_is_called_a_rebuild(
    tmp_path: Path, pools: list[dict[str, Any]], kubernetes: dict[str, Any], expected: bool
) -> None:
    assert rebuilds(ray_service(plan(tmp_path / "a", [L4])), plan(tmp_path / "b", pools, **kubernetes)) is expected


def test_a_surge_says_how_many_gpus_it_needs(tmp_path: Path) -> None:
    live = Live(ray_service(plan(tmp_path / "a", [L4, T4])))
    notice = rollout_notice(live, plan(tmp_path / "b", [L4, T4], image="other:2"))  # type: ignore[arg-type]
    assert notice is not None and "up to 11 more GPUs (5 nodes)" in notice and "3600 s" in notice


def test_a_replace_says_that_nothing_answers(tmp_path: Path) -> None:
    live = Live(ray_service(plan(tmp_path / "a", [L4])))
    notice = rollout_notice(live, plan(tmp_path / "b", [L4], image="other:2", rollout="replace"))  # type: ignore[arg-type]
    assert notice is not None and "nothing answers until" in notice


def test_a_first_deployment_says_nothing(tmp_path: Path) -> None:
    assert rollout_notice(Live(None), plan(tmp_path, [L4])) is None  # type: ignore[arg-type]
