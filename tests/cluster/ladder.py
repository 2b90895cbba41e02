"""A stack's ladder on the emulated EC2, climbed by the stand-in for cluster-autoscaler (`tools/kubernetes/autoscaler.py`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from modelfleet.infra.kubernetes.manifests.autoscaler import priority_expander
from modelfleet.infra.kubernetes.names import HEAD_ACCOUNT, LADDER_RETURN
from modelfleet.infra.kubernetes.scripts import ladder_return
from tests.cluster.conftest import Stack, wait_for
from tests.cluster.eks_nodes import allocatable
from tests.unit.cloud.conftest import Fleet, made
from tests.unit.cloud.test_short_of_machines import groups_of
from tools.cloud.server import listening
from tools.kubernetes.autoscaler import Autoscaler, NodeTemplate, PriorityExpander, StandIn


@dataclass
class Ladder:
    """The first pool's ladder: who buys its nodes, and the program that brings workers back."""

    stack: Stack
    fleet: Fleet
    buyer: Autoscaler
    stand_in: StandIn
    groups: dict[str, str]
    program: ladder_return.Api

    def short_of(self, *kinds: str) -> None:
        """EC2 has no machines of these types from now on, and has those of all others."""
        self.fleet.cloud.cloud.rules.short_of(*((kind, "*") for kind in kinds))

    def climb(self, what: str, look: Callable[[], Any]) -> tuple[Any, list[str]]:
        """What `look` finds while the autoscaler turns, and `RUNG-ZONE` of each group that it asked meanwhile."""
        said: list[str] = []

        def turn() -> Any:
            said.extend(self.stand_in.turn())
            return look()

        found = wait_for(what, turn, seconds=120)
        names = {group: name for name, group in self.groups.items()}
        return found, [names[line.removeprefix("stand-in for cluster-autoscaler: ").split()[0]] for line in said]

    def bring_back(self, now: float) -> list[str]:
        """One turn of the program, as the ServiceAccount of its pod, over the ConfigMap as it is in the cluster."""
        config = self.stack.api.get("v1", "ConfigMap", LADDER_RETURN, self.stack.namespace) or {}
        return ladder_return.turn(json.loads(config["data"]["ladders.json"]), self.program, now, {})

    def may_only_wait(self) -> None:
        """The program's token makes no pod with another account or a Secret, and changes no RayCluster's pods."""
        config = self.stack.api.get("v1", "ConfigMap", LADDER_RETURN, self.stack.namespace) or {}
        (settings,) = json.loads(config["data"]["ladders.json"])
        pods = f"/api/v1/namespaces/{self.stack.namespace}/pods?dryRun=All"
        for field, value in {"serviceAccountName": HEAD_ACCOUNT, "volumes": [{"name": "any", "emptyDir": {}}]}.items():
            pod = ladder_return.placeholder(settings, 1)
            pod["spec"][field] = value
            with pytest.raises(HTTPError) as refused:
                self.program.call("POST", pods, pod)
            assert "makes only pods that wait" in refused.value.read().decode()
        name = self.stack.ray_cluster()["metadata"]["name"]
        path = f"/apis/ray.io/v1/namespaces/{self.stack.namespace}/rayclusters/{name}?dryRun=All"
        account = "/spec/workerGroupSpecs/0/template/spec/serviceAccountName"
        change = [{"op": "add", "path": account, "value": HEAD_ACCOUNT}]
        with pytest.raises(HTTPError) as refused:
            self.program.call("PATCH", path, change, "application/json-patch+json")
        assert "only how many workers" in refused.value.read().decode()


@contextmanager
def ladder_on(stack: Stack, folder: Path) -> Iterator[Ladder]:
    """The ladder of a stack's first pool, on an AWS of its own."""
    with listening() as cloud:
        fleet = made(cloud, stack.plan)
        groups = groups_of(fleet, stack.plan)
        (pool, *_) = stack.plan.pools
        taints = tuple({"key": t.key, "value": t.value, "effect": t.effect} for t in pool.taints)
        rungs = {rung.group: rung for rung in pool.rungs}
        templates = {
            group: NodeTemplate(allocatable(rung.instance_types[0]), rung.labels, taints)
            for name, group in groups.items()
            if (rung := rungs[name.rpartition("-")[0]])
        }
        scaling = cloud.client("autoscaling", fleet.credentials("cluster-autoscaler"))
        buyer = Autoscaler(PriorityExpander(priority_expander(stack.plan)), scaling, groups.values())
        token = folder / "token"
        token.write_text(stack.api.token(stack.namespace, LADDER_RETURN))
        program = ladder_return.Api(stack.cluster.server, stack.namespace, token, stack.cluster.certificate)
        yield Ladder(stack, fleet, buyer, StandIn(stack.api, buyer, templates), groups, program)
