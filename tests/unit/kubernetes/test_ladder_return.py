"""Workers return to an earlier rung: what is asked for, when a worker moves, and that nothing of it exists unasked."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from typing import Any

import pulumi
import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.kubernetes.ladder_return import LadderReturn
from modelfleet.infra.kubernetes.manifests.everything import everything
from modelfleet.infra.kubernetes.manifests.guard import head_guard
from modelfleet.infra.kubernetes.manifests.ladder_return import ladder_return
from modelfleet.infra.kubernetes.scripts.ladder_return import RUNGS, Action, Api, decide, placeholder, removal, turn
from modelfleet.serving.config.errors import InputErrors
from tests.unit.planning.builders import model, planned, pool, stack
from tools.kubernetes.autoscaler import NodeTemplate

A10G = {"accelerator": "A10G", "instanceTypes": ["g5.xlarge"]}
POOL = pool(instanceTypes=["g6.xlarge"], purchase=["spot", "on-demand"], fallback=[A10G], returnAfterMinutes=10)
PLAN = planned([model()], stack(POOL))
(CONFIG,) = [one for one in ladder_return(PLAN) if one["kind"] == "ConfigMap"]
(LADDER,) = json.loads(CONFIG["data"]["ladders.json"])
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
SPOT, ON_DEMAND, OTHER = (dict(rung.labels) for rung in PLAN.pools[0].rungs)


def node(name: str, labels: dict[str, str], *, ready: str = "True", **spec: Any) -> dict[str, Any]:
    status = {"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]}
    return {
        "metadata": {"name": name, "labels": {**labels, "kubernetes.io/hostname": name}},
        "spec": spec,
        "status": status,
    }


def pod(name: str, at: str | None, *, minutes: float = 60, labels: dict[str, str], **status: Any) -> dict[str, Any]:
    when = datetime.fromtimestamp(NOW - 60 * minutes, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    placed = {"type": "PodScheduled", "status": "True" if at else "False", "lastTransitionTime": when}
    spec = {"nodeName": at} if at else {}
    phase = {"phase": "Running" if at else "Pending", "conditions": [placed], **status}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": phase}


def worker(name: str, at: str | None, group: str = "l4", **keys: Any) -> dict[str, Any]:
    return pod(name, at, labels={"ray.io/group": group, "ray.io/node-type": "worker"}, **keys)


def held(name: str, at: str | None, rungs: int = 2, **keys: Any) -> dict[str, Any]:
    made = pod(name, at, labels={"modelfleet.dev/placeholder": "l4"}, **keys)
    made["metadata"]["annotations"] = {RUNGS: str(rungs)}
    return made


def ending(one: dict[str, Any]) -> dict[str, Any]:
    one["metadata"]["deletionTimestamp"] = "2026-11-30T11:59:00Z"
    return one


NODES = [node("first", SPOT), node("second", ON_DEMAND), node("third", OTHER)]
LATE = worker("w", "third")
ASK, MOVE, FORGET = Action("ask", rungs=2), Action("move", "w"), Action("forget", "p")
IN_VAIN = Action("forget", "p", pause=True)

CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[Action]]] = {
    "nobody works": (NODES, [], []),
    "on the first rung": (NODES, [worker("w", "first")], []),
    "too early": (NODES, [worker("w", "third", minutes=9)], []),
    "late on the third": (NODES, [LATE], [ASK]),
    "late on the second": (NODES, [worker("w", "second")], [Action("ask", rungs=1)]),
    "of another pool": (NODES, [worker("w", "third", "t4")], []),
    "while another starts": (NODES, [LATE, worker("v", None)], []),
    "while another ends": (NODES, [LATE, ending(worker("v", "second"))], []),
    "asked, no node yet": (NODES, [LATE, held("p", None)], []),
    "asked for too little": (NODES, [LATE, held("p", None, 1)], [FORGET]),
    "asked twice": (NODES, [LATE, held("p", None), held("q", None)], [FORGET, Action("forget", "q")]),
    "nobody is late any more": (NODES, [worker("w", "first"), held("p", None)], [FORGET]),
    "its image is pulled": (
        [NODES[0], NODES[2]], [LATE, held("p", "first", minutes=29, phase="Pending")], [],
    ),
    "its image cannot be pulled": (
        [NODES[0], NODES[2]], [LATE, held("p", "first", minutes=30, phase="Pending")], [IN_VAIN],
    ),
    "its image cannot be pulled while another ends": (
        NODES, [LATE, ending(worker("v", "second")), held("p", "first", phase="Pending")], [IN_VAIN],
    ),
    "its time is over": (NODES, [LATE, held("p", "first", phase="Failed")], [IN_VAIN]),
    "a node came": ([NODES[0], NODES[2]], [LATE, held("p", "first")], [MOVE]),
    "a free node would be taken first": (NODES, [LATE, held("p", "first")], []),
    "a cordoned node would not be taken": (
        [NODES[0], NODES[2], node("second", ON_DEMAND, unschedulable=True)], [LATE, held("p", "first")], [MOVE],
    ),
    "a node that is not ready would not be taken": (
        [NODES[0], NODES[2], node("second", ON_DEMAND, ready="Unknown")], [LATE, held("p", "first")], [MOVE],
    ),
    "the later rung moves first": (
        NODES, [LATE, worker("v", "second", minutes=99), held("p", "first")], [MOVE],
    ),
    "of two the one that is there longer": (
        [NODES[0], NODES[2], node("fourth", OTHER)],
        [LATE, worker("v", "fourth", minutes=70), held("p", "first")],
        [Action("move", "v")],
    ),
    "it moves": ([NODES[0], NODES[2]], [ending(worker("w", "third")), held("p", "first")], [FORGET]),
    "the next waits for it": (
        [NODES[0], NODES[2], node("fourth", OTHER)],
        [ending(worker("w", "third")), worker("v", "fourth"), held("p", "first")],
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_worker_moves_only_to_a_node_that_is_there(case: str) -> None:
    nodes, pods, wanted = CASES[case]
    assert decide(LADDER, nodes, pods, NOW) == wanted


def test_the_placeholder_asks_for_a_whole_node_of_an_earlier_rung_and_no_other() -> None:
    """Both sides: the autoscaler's predicates over what the plan gives each group."""
    made = placeholder(LADDER, 2)
    (group,) = PLAN.ray_cluster.worker_groups
    offered = {
        "cpu": f"{group.node.cpu_millis}m", "memory": f"{group.node.memory_mib}Mi", "nvidia.com/gpu": "1",
        "ephemeral-storage": f"{group.node.disk_gb}G",
    }  # fmt: skip
    taints = tuple({"key": t.key, "value": t.value, "effect": t.effect} for t in group.taints)
    carried = [NodeTemplate(offered, rung.labels, taints).carries(made) for rung in PLAN.pools[0].rungs]
    assert carried == [True, True, False]
    smaller = {**offered, "cpu": f"{group.node.cpu_millis - 1}m"}
    assert not NodeTemplate(smaller, SPOT, taints).carries(made), "a worker would not fit where it waited"
    assert not NodeTemplate(offered, SPOT, ({"key": "other", "value": "", "effect": "NoSchedule"},)).carries(made)


def test_the_placeholder_gives_way_to_any_worker_and_the_autoscaler_still_serves_it() -> None:
    """Below -10 cluster-autoscaler buys nothing, and at 0 no worker would take the node from it."""
    made = {one["kind"]: one for one in ladder_return(PLAN)}
    assert made["PriorityClass"]["value"] == -10
    spec = placeholder(LADDER, 1)["spec"]
    assert spec["priorityClassName"] == made["PriorityClass"]["metadata"]["name"] == "modelfleet-test-placeholder"
    assert spec["activeDeadlineSeconds"] == 3600, "a node that nobody takes must not stay when the program is gone"
    assert spec["containers"][0]["image"] == PLAN.ray_cluster.image, "the worker finds its image on the node"


def test_the_admission_policy_is_over_its_account_and_lets_its_placeholder_pass() -> None:
    """It fails closed, so a label that the policy does not know would end the way back for good."""
    policy, _ = head_guard(PLAN)
    (who,) = policy["spec"]["matchConditions"]
    accounts = [f"system:serviceaccount:{PLAN.namespace}:{name}" for name in ("ray-head", "ladder-return")]
    assert who["expression"] == f"request.userInfo.username in {accounts}"
    created = [
        rule["resources"]
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
        if "CREATE" in rule["operations"]
    ]
    assert created == [["pods"]]
    (rule,) = [one["expression"] for one in policy["spec"]["validations"] if "makes only pods" in one["message"]]
    made = placeholder(LADDER, 1)
    labels = made["metadata"]["labels"]
    asked = dict(re.findall(r"labels\['([^']+)'\] == '([^']+)'", rule))
    assert asked == {key: value for key, value in labels.items() if key != "modelfleet.dev/placeholder"}
    assert f"labels.size() == {len(labels)}" in rule
    assert not {"volumes", "initContainers", "serviceAccountName"} & set(made["spec"])
    assert made["spec"]["automountServiceAccountToken"] is False
    assert not {"env", "envFrom"} & set(made["spec"]["containers"][0])


def test_a_worker_is_replaced_by_kuberay_and_others_that_go_still_go() -> None:
    cluster = {
        "metadata": {"resourceVersion": "71"},
        "spec": {
            "workerGroupSpecs": [
                {"groupName": "a"},
                {"groupName": "l4", "scaleStrategy": {"workersToDelete": ["idle"]}},
            ]
        },
    }
    assert removal(cluster, "l4", "w") == [
        {"op": "test", "path": "/metadata/resourceVersion", "value": "71"},
        {"op": "test", "path": "/spec/workerGroupSpecs/1/groupName", "value": "l4"},
        {"op": "add", "path": "/spec/workerGroupSpecs/1/scaleStrategy", "value": {"workersToDelete": ["idle", "w"]}},
    ]


class Namespace(Api):
    """The namespace's API server in memory: what a placeholder of it becomes is up to the test."""

    def __init__(self) -> None:
        self.namespace, self.there = "ns", [LATE]

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> dict[str, Any]:
        if method == "POST":
            body["metadata"]["name"] = "p"
            body["spec"]["nodeName"] = "first"
            body["status"] = {"phase": "Failed", "conditions": LATE["status"]["conditions"]}
            self.there.append(body)
        elif method == "DELETE":
            self.there = [LATE]
        return {"items": NODES if "/nodes" in path else self.there}


def test_after_a_placeholder_that_was_in_vain_nothing_is_asked_for_half_an_hour() -> None:
    """Its node is bought for nothing, and the next one would fail the same way."""
    api, pauses = Namespace(), dict[str, float]()
    minutes = (0, 1, 2, 30, 31)
    assert [[line.split(":")[1] for line in turn([LADDER], api, NOW + 60 * at, pauses)] for at in minutes] == [
        [" asks again for L4 spot or L4 on-demand"],
        [" p was in vain"],
        [],
        [],
        [" asks again for L4 spot or L4 on-demand"],
    ]


def test_the_placeholder_pulls_the_image_that_was_built() -> None:
    """By another name the worker would not find its image on the node."""
    built = "registry.example/serving@sha256:0123"

    class Recorder(pulumi.runtime.Mocks):
        def __init__(self) -> None:
            self.made = list[tuple[str, dict[Any, Any]]]()

        def call(self, args: pulumi.runtime.MockCallArgs) -> Any:
            return {}, []

        def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
            self.made.append((args.typ, args.inputs))
            return args.name, args.inputs

    recorder = Recorder()
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(recorder)
    pulumi.runtime.test(lambda: LadderReturn("return", PLAN, image=pulumi.Output.from_input(built)) and None)()
    made = {kind.rpartition(":")[2]: inputs for kind, inputs in recorder.made}
    (ladder,) = json.loads(made["ConfigMap"]["data"]["ladders.json"])
    workers = made["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert ladder["placeholder"]["spec"]["containers"][0]["image"] == workers == built
    assert made["ConfigMap"]["data"]["ladder_return.py"] == CONFIG["data"]["ladder_return.py"]


def test_where_no_pool_asks_for_it_nothing_exists_and_nothing_changes() -> None:
    """Off costs nothing: no pod, no right, no quota, and the Ray cluster is the same with it and without."""
    off = {key: value for key, value in POOL.items() if key != "returnAfterMinutes"}
    without = planned([model()], stack(off))
    assert ladder_return(without) == []
    more = [one for one in everything(PLAN) if one not in everything(without)]
    assert {(one["kind"], one["metadata"]["name"]) for one in more} == {
        ("ResourceQuota", "gpus"),
        ("NetworkPolicy", "ladder-return"),
        *((one["kind"], one["metadata"]["name"]) for one in ladder_return(PLAN)),
    }
    assert PLAN.ray_cluster == without.ray_cluster


def test_the_gpu_quota_has_room_for_a_move() -> None:
    """A worker that drains, its successor and the placeholder are there at once."""
    limits = {one["metadata"]["name"]: one for one in everything(PLAN) if one["kind"] == "ResourceQuota"}
    assert limits["gpus"]["spec"]["hard"] == {"requests.nvidia.com/gpu": str(2 * 8 + 2)}


def test_the_catalog_has_the_requests_of_its_pod() -> None:
    (deployment,) = [one for one in ladder_return(PLAN) if one["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (row,) = [one for one in default_catalog().system_pods if one.name == "ladder-return"]
    asked = container["resources"]["requests"]
    assert (asked["cpu"], asked["memory"]) == (f"{row.cpu_millis}m", f"{row.memory_mib}Mi")


@pytest.mark.parametrize(
    ("keys", "target", "said"),
    [
        ({}, "eks", "is for a pool with several purchases or a fallback"),
        ({"purchase": ["spot", "on-demand"]}, "kubernetes", "moves workers to nodes that the stack makes"),
    ],
)
def test_a_return_that_cannot_be_is_refused(keys: dict[str, Any], target: str, said: str) -> None:
    with pytest.raises(InputErrors) as caught:
        planned([], stack(pool(instanceTypes=["g6.xlarge"], returnAfterMinutes=10, **keys), target=target))
    (found,) = caught.value.findings
    assert found.path.endswith("returnAfterMinutes") and found.message.startswith(said)
