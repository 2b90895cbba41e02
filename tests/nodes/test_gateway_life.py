"""The gateway's pods under open streams: a roll, a hang, and a drain of the node that has both.

Behind it is a server that streams for as long as it is told, so that nothing here waits for a model. It listens where a
replica does, and where Serve's proxy does.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from modelfleet.infra.gateway import render_key_map
from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.secrets import gateway_keys
from modelfleet.infra.kubernetes.names import REPLICA_PORTS, SERVE_PORT, SERVE_SERVICE
from tests.cluster.fleet import model, planned
from tests.nodes.life import cordon, drain, on
from tests.nodes.pods import Pods
from tests.unit.kubernetes.test_network import RAY
from tests.waiting import wait_until
from tools.kubernetes.cluster import MANAGER, Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: The second: the first may be another replica's.
REPLICA_PORT = REPLICA_PORTS[0] + 1
QUESTION = json.dumps({"model": "org/one", "max_tokens": 1, "prompt": "x"})
POOL = {"name": "cpu", "accelerator": "CPU", "maxNodes": 1, "instanceTypes": ["c7i.2xlarge"]}
SERVER = """
import asyncio, json
asked = {8000: 0, 30001: 0}
async def answer(reader, writer):
    try:
        while head := await reader.readuntil(b"\\r\\n\\r\\n"):
            lines = head.decode().lower().split("\\r\\n")
            length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
            if not length:  # a check, or who wants to know what was asked where
                said = json.dumps(asked if "/asked" in lines[0] else {"/org--one": "org--one"}).encode()
                writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n%s" % (len(said), said))
                break
            asked[writer.get_extra_info("sockname")[1]] += 1
            print(*(line for line in lines if line.startswith("x-modelfleet-settle:")), flush=True)
            ticks = json.loads(await reader.readexactly(length))["max_tokens"]
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
            for tick in range(ticks):
                data = b"data: %d\\n\\n" % tick
                writer.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))
                await writer.drain()
                await asyncio.sleep(1)
            writer.write(b"0\\r\\n\\r\\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()
async def main():
    for port in asked:
        await asyncio.start_server(answer, "0.0.0.0", port)
    await asyncio.Event().wait()
asyncio.run(main())
"""
#: Opens streams of so many ticks; prints "open" when each has its first, and at the end how many had all.
CLIENT = """
import asyncio, sys
streams, ticks = int(sys.argv[1]), int(sys.argv[2])
body = b'{"model": "org/one", "stream": true, "max_tokens": %d, "prompt": "x"}' % ticks
request = b"POST /v1/completions HTTP/1.1\\r\\nHost: gateway\\r\\nAuthorization: Bearer sk-one-0123456789abcdef\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n%s" % (len(body), body)
opened = 0
async def stream():
    global opened
    reader, writer = await asyncio.open_connection("gateway", 80)
    writer.write(request)
    seen, first = b"", True
    while data := await reader.read(4096):
        seen += data
        if first and b"data: 0" in seen:
            first, opened = False, opened + 1
            if opened == streams:
                print("open", flush=True)
    return seen.count(b"data: ") == ticks and seen.endswith(b"0\\r\\n\\r\\n")
async def main():
    whole = await asyncio.gather(*(stream() for _ in range(streams)), return_exceptions=True)
    print("whole", sum(one is True for one in whole), [repr(one) for one in whole if one is not True][:3], flush=True)
asyncio.run(main())
"""
#: The key that the client shows.
KEY = "sk-one-0123456789abcdef"
#: Tells a gateway what a request took, and prints its answer; 000 for none. Policies hear of a new pod a moment late.
TELL = """
for _ in $(seq {tries}); do
    sleep 2
    code=$(curl -s -m 5 -o /dev/null -w '%{{http_code}}' -X POST -H 'x-modelfleet-secret: {secret}' \\
        -H 'x-modelfleet-key: one' -H 'x-modelfleet-more: 1' -H 'x-modelfleet-less: 0' http://{address}/settle)
    [ "$code" = 000 ] || break
done
echo "$code"
"""


@dataclass
class Gateway:
    """A stack's gateway in front of that server, and pods in its namespace."""

    cluster: Cluster
    pods: Pods

    @property
    def running(self) -> dict[str, dict[str, Any]]:
        """Its pods that are not ending, by name."""
        found = self.cluster.api.list("v1", "Pod", self.pods.namespace, "app.kubernetes.io/name=gateway")
        return {pod["metadata"]["name"]: pod for pod in found if "deletionTimestamp" not in pod["metadata"]}

    @property
    def ready(self) -> list[str]:
        """Those that get requests."""
        slices = self.cluster.api.list(
            "discovery.k8s.io/v1", "EndpointSlice", self.pods.namespace, "kubernetes.io/service-name=gateway"
        )
        ends = [end for one in slices for end in one.get("endpoints") or []]
        return sorted(end["targetRef"]["name"] for end in ends if end["conditions"].get("ready"))

    def settled(self, pods: int = 2) -> list[str]:
        """Wait until so many pods are there and get requests."""
        return wait_until(
            lambda: ready if sorted(self.running) == (ready := self.ready) and len(ready) == pods else [],
            what=f"{pods} gateway pods are ready",
            seconds=180,
        )

    def asked(self) -> tuple[int, int]:
        """Requests so far at Serve's proxy, and at the replica's own port."""
        at = json.loads(self.pods.says(f"curl -s http://{SERVE_SERVICE}:{SERVE_PORT}/asked"))
        return at[str(SERVE_PORT)], at[str(REPLICA_PORT)]

    def found(self) -> None:
        """Wait until each of its pods that gets requests has found the replica."""
        for pod in self.settled():
            address = self.running[pod]["status"]["podIP"]

            def finds(address: str = address) -> bool:
                before = self.asked()
                says = f"-H 'Authorization: Bearer {KEY}' -H 'Content-Type: application/json' -d '{QUESTION}'"
                self.pods.says(f"curl -sf {says} http://{address}:8080/v1/completions")
                return self.asked() == (before[0], before[1] + 1)

            wait_until(finds, what=f"{pod} sends to the replica's own port", seconds=120)

    def stream(self, name: str, streams: int, ticks: int) -> None:
        """Start a pod with open streams; returns when all are open."""
        command = ["python3", "-u", "-c", CLIENT, str(streams), str(ticks)]
        self.pods.create(name, "", container={"command": command}, **on(1))
        wait_until(lambda: "open" in self.pods.log(name), what=f"{streams} streams are open", seconds=120)

    def whole(self, name: str) -> str:
        """What the pod says when its streams have ended."""
        self.pods.wait(name, "Succeeded")
        return self.pods.log(name).splitlines()[-1]


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    one = model("org/one", "CPU")
    one["deployment_config"]["max_ongoing_requests"] = 1000  # all streams of these tests at once
    limit = {"auth": "keys", "apiKeys": {"one": {"secure": "v1:x"}}, "gateway": {"tokensPerMinute": 100_000_000}}
    plan = planned(tmp_path_factory.mktemp("gateway"), [one], stack="gateway", pools=[POOL], **limit)
    wanted = {"Namespace", "PriorityClass", "ServiceAccount", "ConfigMap", "PodDisruptionBudget"}
    for manifest in everything(plan):
        if manifest["kind"] in wanted or manifest["metadata"]["name"] == "gateway":
            cluster.api.apply(manifest, manager=MANAGER, force=True)
    cluster.api.apply(gateway_keys(plan, render_key_map({"one": KEY})), manager=MANAGER, force=True)
    pods = Pods(cluster, plan.namespace)
    pods.create(
        "server", "", container={"command": ["python3", "-c", SERVER]}, labels={"app": "server", **RAY}, **on(1)
    )
    ports = [{"port": SERVE_PORT}]
    meta = {"name": SERVE_SERVICE, "namespace": plan.namespace}
    cluster.api.create(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"clusterIP": "None", "selector": {"app": "server"}, "ports": ports},
        }
    )
    made = Gateway(cluster, pods)
    made.settled()
    wait_until(
        lambda: pods.says("curl -s -o /dev/null -w '%{http_code}' http://gateway/ready || true") == "200",
        what="the gateway finds its upstream",
        seconds=60,
    )
    yield made
    cluster.api.delete("v1", "Namespace", plan.namespace)


def test_a_replica_tells_the_gateway_that_asked_at_its_pods_own_address_and_nobody_else_may(gateway: Gateway) -> None:
    """What the pod says of itself (`POD_IP`), heard by the server, and reached from a pod with the labels of Ray's."""
    gateway.stream("told", 4, 1)
    assert gateway.whole("told") == "whole 4 []"
    said = [line.split()[1:] for line in gateway.pods.log("server").splitlines() if line.startswith("x-modelfleet-")]
    address, secret, *budgets = said[-1]
    pods = {pod["status"]["podIP"] for pod in gateway.running.values()}
    assert address in {f"{ip}:8405" for ip in pods} and budgets == ["-", "-"]
    assert gateway.pods.says(TELL.format(tries=30, secret=secret, address=address), labels=RAY) == "204"
    assert gateway.pods.says(TELL.format(tries=30, secret="0" * 32, address=address), labels=RAY) == "403"
    assert gateway.pods.says(TELL.format(tries=2, secret=secret, address=address)) == "000"


def test_a_roll_under_200_open_streams_cuts_none(gateway: Gateway) -> None:
    gateway.found()
    before, (proxy, replica) = gateway.settled(), gateway.asked()
    gateway.stream("streams", 200, 75)
    assert gateway.asked() == (proxy, replica + 200), "past Serve's proxy"
    note = {"spec": {"template": {"metadata": {"annotations": {"a-change": "1"}}}}}
    gateway.cluster.api.merge("apps/v1", "Deployment", "gateway", gateway.pods.namespace, note)
    wait_until(lambda: not set(before) & set(gateway.ready), what="new pods get the requests", seconds=60)
    gateway.stream("late", 20, 5)
    assert gateway.whole("late") == "whole 20 []"
    assert gateway.whole("streams") == "whole 200 []"


def test_a_gateway_that_hangs_gets_no_requests_and_is_started_again(gateway: Gateway) -> None:
    (hung, _) = gateway.settled()
    node = gateway.cluster.node(gateway.running[hung]["spec"]["nodeName"])
    (container,) = (
        one["containerID"].rpartition("/")[2]
        for one in gateway.running[hung]["status"]["containerStatuses"]
        if one["name"] == "gateway"
    )
    stop = f"ctr --namespace k8s.io tasks ps {container} | awk 'NR > 1 {{print $1}}' | xargs kill -STOP"
    subprocess.run(node.command("sh", "-c", stop), check=True, capture_output=True)
    wait_until(lambda: hung not in gateway.ready, what="no more requests to what hangs", seconds=60)
    gateway.stream("meanwhile", 20, 3)
    assert gateway.whole("meanwhile") == "whole 20 []"

    def restarts() -> int:
        return sum(one["restartCount"] for one in gateway.running[hung]["status"]["containerStatuses"])

    wait_until(lambda: restarts() == 1, what="the hung one is started again", seconds=120)
    gateway.settled()


def test_a_drain_of_the_node_with_both_gateways_leaves_one_to_answer(gateway: Gateway) -> None:
    api = gateway.cluster.api
    cordon(api, "node-2")
    for name in [name for name, pod in gateway.running.items() if pod["spec"]["nodeName"] == "node-2"]:
        api.delete("v1", "Pod", name, gateway.pods.namespace)
    gateway.settled()
    cordon(api, "node-2", off=True)
    assert {pod["spec"]["nodeName"] for pod in gateway.running.values()} == {"node-1"}
    gateway.stream("drained", 50, 70)
    try:
        refused = drain(api, "node-1", seconds=240, namespace=gateway.pods.namespace)
    finally:
        cordon(api, "node-1", off=True)
    assert any("disruption budget" in message for message in refused), "both went at once"
    assert gateway.whole("drained") == "whole 50 []"
    gateway.settled()
