"""`modelfleet doctor` on the real control plane: each fault's rule comes first, and goes when the fault is mended."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import MANAGER, Stack, take_away, wait_for
from tests.cluster.doctor_faults import FAULTS, Live
from tests.cluster.eks_nodes import pool_nodes, system_nodes
from tests.cluster.fleet import model, planned
from tests.cluster.head import FakeRay, head_address, head_token, on_loopback
from tests.doctor_faults import Doctor, Fault, healthy, ids, prove, state_of
from tools.kubernetes.control_plane import ControlPlane

pytestmark = pytest.mark.slow

NAME = "sick"
POOLS = [
    {"name": "l4", "accelerator": "L4", "maxNodes": 1, "instanceTypes": ["g6.2xlarge"]},
    {"name": "t4", "accelerator": "T4", "maxNodes": 1, "instanceTypes": ["g4dn.12xlarge"]},
]
MODELS = [model("org/one", "L4"), model("org/two", "T4", replicas=(0, 1))]


@pytest.fixture(scope="module")
def live(cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A stack that serves, for the whole file."""
    root = tmp_path_factory.mktemp("doctor")
    (root / "Pulumi.yaml").write_text("name: fleet\nruntime: python\n")
    stack = Stack(planned(root, MODELS, stack=NAME, pools=POOLS), cluster, root)
    for node in [*system_nodes(stack.plan), *pool_nodes(stack.plan, stack.plan.pools[0], 1), spare_node()]:
        cluster.api.create(node)
    stack.apply()
    stack.start_operator()
    where = cluster.api, stack.namespace
    with on_loopback(head_address(*where)) as address, FakeRay(address, head_token(*where)):
        stack.scale({"l4": 1})
        wait_for("Ready", lambda: _is_ready(stack), seconds=120)
        environ = {"KUBECONFIG": str(cluster.kubeconfig)}
        yield Live(stack, Doctor(root, NAME, environ, state_of(stack.plan), secrets_in(stack)), "sick-spare")
    take_away(stack)
    cluster.api.delete("v1", "Node", "sick-spare")


def spare_node() -> dict[str, Any]:
    """A node that nobody's kubelet looks after: what a test writes to its status stays."""
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}
    status = {"conditions": [{**ready, "lastTransitionTime": "2026-12-01T00:00:00Z"}]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "sick-spare"}, "status": status}


def secrets_in(stack: Stack) -> tuple[str, ...]:
    """Every value of the namespace's Secrets, and the administrator's token."""
    found = stack.api.list("v1", "Secret", stack.namespace)
    values = [base64.b64decode(value).decode() for one in found for value in one.get("data", {}).values()]
    user = json.loads(stack.cluster.kubeconfig.read_text())["users"][0]["user"]
    assert values, "there is nothing to hide"
    return (*values, user["token"])


def _is_ready(stack: Stack) -> bool:
    service = stack.api.get("ray.io/v1", "RayService", "fleet", stack.namespace) or {}
    conditions = {one["type"]: one["status"] for one in service.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True"


def test_a_stack_that_serves_has_nothing_to_fix(live: Live) -> None:
    """Also where others have a Deployment in its namespace, which they switched off."""
    labels, container = {"app": "theirs"}, {"name": "c", "image": "busybox"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    meta = {"name": "theirs", "namespace": live.stack.namespace}
    theirs = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
    live.stack.api.apply(theirs, manager=MANAGER)
    answer = healthy(live.doctor)
    print(f"a look takes {answer.seconds:.1f} s")
    assert set(answer.unread) <= {"engine"}, "kwok keeps no logs; all else is read"


@pytest.mark.parametrize("fault", FAULTS, ids=ids(FAULTS))
def test_its_first_cause_is(fault: Fault, live: Live) -> None:
    prove(fault, live, live.doctor)


def test_without_the_api_server_the_files_still_speak(live: Live, tmp_path: Path) -> None:
    config = json.loads(live.stack.cluster.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "config").write_text(json.dumps(config))
    away = Doctor(live.doctor.root, NAME, {"KUBECONFIG": str(tmp_path / "config")}, live.doctor.state)
    answer = away()
    assert (answer.code, answer.rules, set(answer.unread)) == (2, [], {"kubernetes", "engine"})
    file = live.doctor.root / "models" / "org--one.yaml"
    before = file.read_text()
    file.write_text(before.replace("STRICT_PACK", "STRICT_PACKED"))
    try:
        answer = away()
    finally:
        file.write_text(before)
    assert (answer.code, answer.rules[0], set(answer.unread)) == (1, "file-at-fault", {"kubernetes", "engine"})


def test_who_may_read_pods_alone_learns_what_they_say(live: Live) -> None:
    api, where = live.stack.api, live.stack.namespace
    api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "colleague", "namespace": where}})
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": [rule]}
    api.create({**role, "metadata": {"name": "colleague", "namespace": where}})
    subject = {"kind": "ServiceAccount", "name": "colleague", "namespace": where}
    of = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "colleague"}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "roleRef": of,
        "subjects": [subject],
    }
    api.create({**binding, "metadata": {"name": "colleague", "namespace": where}})
    kubeconfig = live.stack.cluster.kubeconfig_for(where, "colleague")
    doctor = Doctor(live.doctor.root, NAME, {"KUBECONFIG": str(kubeconfig)}, live.doctor.state, live.doctor.secrets)
    crashes = next(fault for fault in FAULTS if fault.rule == "pod-out-of-memory")
    with crashes.broken(live):
        answer = doctor()
    assert "pod-out-of-memory" in answer.rules
    assert "nodes is forbidden" in answer.unread["kubernetes"]
