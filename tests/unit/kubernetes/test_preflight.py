"""What a run refuses of an existing cluster without asking for more than its version."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from modelfleet.infra.kubernetes.api import Api
from modelfleet.infra.kubernetes.preflight import too_old
from tests.cluster.fleet import five_models, planned


class Cluster:
    """An API server of a version."""

    def __init__(self, minor: str) -> None:
        self.minor = minor
        self.client = self

    def request(self, verb: str, path: str, **_: Any) -> dict[str, str]:
        assert (verb, path) == ("get", "/version")
        return {"major": "1", "minor": self.minor}

    def _worded(self) -> Any:
        return Api._worded(cast(Api, self))

    minor_version = Api.minor_version


@pytest.mark.parametrize(("minor", "refused"), [("29", True), ("29+", True), ("30", False), ("35+", False)])
def test_a_cluster_without_admission_policies_is_refused_with_the_ways_out(
    tmp_path: Path, minor: str, refused: bool
) -> None:
    """The run failed in its middle, with the namespace and the accounts made."""
    said = too_old(cast(Api, Cluster(minor)), planned(tmp_path, five_models()))
    assert bool(said) is refused
    if refused:
        assert "Kubernetes 1.29" in said[0] and "needs 1.30" in said[0]
        assert "upgrade it" in said[0] and "createNamespace: false" in said[0]


def test_a_stack_that_makes_no_admission_policy_may_use_an_old_cluster(tmp_path: Path) -> None:
    theirs = planned(tmp_path, five_models(), kubernetes={"namespace": "team", "createNamespace": False})
    assert too_old(cast(Api, Cluster("27")), theirs) == []
