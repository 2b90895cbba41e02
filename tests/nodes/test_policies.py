"""Who can reach what, by connections that work or are cut: the table of `tests/unit/kubernetes/test_network.py`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.planning import Plan
from tests.nodes.pods import Pods
from tests.unit.kubernetes.test_network import (
    OUT_PORTS,
    OUTSIDE,
    PORTS,
    End,
    ends,
    leaving,
    policies_of,
    reachable,
    tight,
)
from tests.waiting import wait_until
from tools.kubernetes.cluster import MANAGER, Cluster
from tools.kubernetes.node.network import BRIDGE
from tools.kubernetes.node.settings import DNS, GATEWAY

pytestmark = pytest.mark.slow

LISTENED = (*PORTS.values(), 8405, 8406)
#: Outside the cluster, servers at these addresses answer everybody on every port of the table: what cuts a connection
#: to them is a policy. The API server is the cluster's own.
SERVERS = {name: address for name, address in OUTSIDE.items() if name != "api"}
API = ("api", OUTSIDE["api"], 443)
LISTEN = """
import asyncio, sys
async def main():
    for port in sys.argv[2:]:
        await asyncio.start_server(lambda reader, writer: writer.close(), sys.argv[1], int(port))
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
#: Prints the places, of those in its second argument, that it can connect to from the address in its first, and again
#: as often as the third says: an enforcer lets a pod pass that it has not heard of, so the first second is open.
CONNECT = """
import asyncio, json, sys
own = (sys.argv[1], 0) if sys.argv[1] else None
async def opens(host, port):
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port, local_addr=own), 3)
    except OSError:
        return False
    except asyncio.TimeoutError:
        return False
    writer.close()
    return True
async def main(places):
    for _ in range(int(sys.argv[3])):
        found = await asyncio.gather(*(opens(host, port) for _, host, port in places))
        print(json.dumps([[name, port] for (name, _, port), is_open in zip(places, found) if is_open]), flush=True)
        await asyncio.sleep(1)
asyncio.run(main(json.loads(sys.argv[2])))
"""

Place = tuple[str, str, int]


@dataclass
class Table:
    """The stack's namespaces with its policies, and a pod that listens on every port for each kind of its pods."""

    cluster: Cluster
    plan: Plan
    ends: Mapping[str, End]
    places: Sequence[Place]

    def connect(self, name: str, places: Sequence[Place], node: int) -> str:
        """Start a pod with the labels of `name` that connects to the places; returns its name."""
        pod = f"from-{name}-{node}"
        command = ["python3", "-c", CONNECT, "", json.dumps(places), "100"]
        self._pods(name).create(pod, "", container={"command": command}, **self._of(name, node))
        return pod

    def connected(self, name: str, pod: str) -> set[tuple[str, int]]:
        """What that pod reached when it last tried."""
        lines = self._pods(name).log(pod).splitlines()
        return {(target, port) for target, port in json.loads(lines[-1])} if lines else set()

    def from_outside(self, name: str, places: Sequence[Place]) -> set[tuple[str, int]]:
        """What an address outside the cluster reaches."""
        command = self.cluster.network.command(sys.executable, "-c", CONNECT, SERVERS[name], json.dumps(places), "1")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return {(target, port) for target, port in json.loads(done.stdout)}

    @property
    def ours(self) -> list[str]:
        """The names of pods in the stack's namespaces."""
        return [name for name, end in self.ends.items() if end.namespace in namespaces(self.plan)]

    def listen(self, name: str) -> None:
        """A pod of the kind that listens, on the first node."""
        command = ["python3", "-u", "-c", LISTEN, "0.0.0.0", *map(str, LISTENED)]
        self._pods(name).create(name, "", container={"command": command}, **self._of(name, 1))

    def address(self, name: str) -> str:
        """The address of the pod that listens."""
        pods = self._pods(name)
        pods.ready(name)
        wait_until(lambda: "ready" in pods.log(name), what=f"{name} listens", seconds=60)
        return str(pods.get(name)["status"]["podIP"])

    def _pods(self, name: str) -> Pods:
        return Pods(self.cluster, self.ends[name].namespace)

    def _of(self, name: str, node: int) -> dict[str, Any]:
        return {"labels": dict(self.ends[name].labels), "nodeName": f"node-{node}"}


def namespaces(plan: Plan) -> tuple[str, str]:
    return plan.namespace, plan.mirror_namespace


@pytest.fixture(scope="module")
def table(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    plan = tight(tmp_path_factory.mktemp("policies"))
    found = {end.name: end for end in ends(plan)}
    for manifest in everything(plan):
        if manifest["kind"] in ("Namespace", "NetworkPolicy"):
            cluster.api.apply(manifest, manager=MANAGER, force=True)
    cluster.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "monitoring"}})
    made = Table(cluster, plan, found, [])
    names = [name for name in made.ours if name not in ("intruder", "impostor")]
    for name in names:
        made.listen(name)
    addresses = {name: made.address(name) for name in names}
    servers = []
    for host in SERVERS.values():
        cluster.network.ip("address", "add", f"{host}/32", "dev", BRIDGE)
        command = cluster.network.command(sys.executable, "-u", "-c", LISTEN, host, *map(str, OUT_PORTS))
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    made.places = [(name, address, port) for name, address in addresses.items() for port in LISTENED]
    yield made
    for server in servers:
        server.kill()
        server.wait()
    for host in SERVERS.values():
        cluster.network.ip("address", "del", f"{host}/32", "dev", BRIDGE)
    for namespace in (*namespaces(plan), "monitoring"):
        cluster.api.delete("v1", "Namespace", namespace)


OUTWARD = [(name, host, port) for name, host in SERVERS.items() for port in OUT_PORTS]


@pytest.mark.parametrize("node", [1, 2], ids=["on one node", "across nodes"])
def test_exactly_the_connections_that_the_rules_open_work(table: Table, node: int) -> None:
    places = [*table.places, *OUTWARD, ("dns", DNS, 53), API]
    inside = [name for name, end in table.ends.items() if end.namespace]
    pods = {name: table.connect(name, places, node) for name in inside}
    outside_in = {name: table.from_outside(name, table.places) for name in SERVERS}

    def seen() -> tuple[set[tuple[str, str, int]], dict[str, set[tuple[str, int]]]]:
        """Ways into the stack's pods, and out of them."""
        ways = {name: table.connected(name, pod) for name, pod in pods.items()} | outside_in
        into = {(source, *way) for source, found in ways.items() for way in found if way[0] in table.ours}
        stack = {way for way in into if way[0] != way[1]}
        return stack, {name: {way for way in ways[name] if way[0] in (*OUTSIDE, "dns")} for name in table.ours}

    policies = policies_of(table.plan)
    out = {name: {way for way in ways if way[0] != "api"} for name, ways in leaving(policies, table.plan).items()}
    for name in ("gateway", "kuberay-operator", "mirror", "head", "worker"):
        out[name].add(("dns", 53))
    for name in ("kuberay-operator", "head"):  # and no replica
        out[name].add(("api", 443))
    into = {way for way in reachable(policies, table.plan) if way[0] != "api"}
    end = time.monotonic() + 60
    while seen() != (into, out) and time.monotonic() < end:
        time.sleep(1)
    assert seen() == (into, out)


def test_without_policies_everything_is_open(table: Table, cluster: Cluster) -> None:
    """What the other test sees is the policies' work, and not a server that is not there."""
    pods = Pods(cluster, "monitoring")
    pods.create("free", "", container={"command": ["python3", "-c", CONNECT, "", json.dumps([*OUTWARD, API]), "1"]})
    pods.wait("free", "Succeeded")
    found = {(name, port) for name, port in json.loads(pods.log("free"))}
    assert found == {(name, port) for name, _, port in [*OUTWARD, API]}
    assert GATEWAY not in json.dumps(table.places)
