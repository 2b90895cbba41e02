"""One cluster with two real nodes for all tests of this folder, and one fleet on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelfleet.serving.config.errors import SetupError
from tests.nodes.fleet import NODE_CPUS, WEBHOOK, WEBHOOK_PATH, WEBHOOK_PORT, NodesFleet
from tests.nodes.life import workers
from tests.nodes.pods import NAMESPACE, Pods
from tests.nodes.volumes import give_volume
from tests.waiting import wait_until
from tools.go_toolchain import go_command
from tools.kubernetes.binaries import build_all, missing
from tools.kubernetes.cluster import Cluster
from tools.kubernetes.node import machine, serving_image
from tools.kubernetes.trial.trial import Trial, local_weights


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Two nodes with Debian's image, in a cluster that enforces policies."""
    try:
        machine.require()
        if missing():
            go_command("the nodes of these tests")
    except SetupError as error:
        pytest.skip(str(error))
    build_all()
    with Cluster(2, recipes=serving_image.fleet(), cpus=NODE_CPUS) as made:
        yield made


@pytest.fixture(scope="package")
def pods(cluster: Cluster) -> Pods:
    """Pods in a namespace of their own, under the strictest Pod Security standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    return Pods(cluster)


@pytest.fixture(scope="package")
def storage(cluster: Cluster) -> Iterator[dict[str, str]]:
    """An object store in the cluster; gives the environment in which it is reached from here."""
    with Trial("nodes", cluster.plane.kubeconfig, cluster.api).object_store() as environment:
        yield environment


#: Writes what is sent to its path as a line of its log each.
LISTEN = f"""
from http.server import BaseHTTPRequestHandler, HTTPServer
class Webhook(BaseHTTPRequestHandler):
    def do_POST(self):
        known = self.path == "{WEBHOOK_PATH}"
        if known:
            print(self.rfile.read(int(self.headers["Content-Length"])).decode().strip(), flush=True)
        self.send_response(200 if known else 404)
        self.end_headers()
    def log_message(self, *said):
        pass
HTTPServer(("", {WEBHOOK_PORT}), Webhook).serve_forever()
"""


@pytest.fixture(scope="package")
def webhook(pods: Pods) -> str:
    """A Service with a pod that takes alerts."""
    labels = {"app": WEBHOOK}
    pods.create(WEBHOOK, "", labels=labels, container={"command": ["python3", "-c", LISTEN]})
    meta, ports = {"name": WEBHOOK, "namespace": NAMESPACE}, [{"port": WEBHOOK_PORT}]
    pods.cluster.api.create(
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"selector": labels, "ports": ports}}
    )
    return f"http://{WEBHOOK}.{NAMESPACE}.svc:{WEBHOOK_PORT}"


@pytest.fixture(scope="package")
def fleet(
    cluster: Cluster, storage: dict[str, str], webhook: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodesFleet]:
    """A fleet of two replicas, one on each node, that came up by one `pulumi up` and the model's schedule.

    It has a Prometheus and an Alertmanager of its own.
    """
    give_volume(cluster, "metrics")
    with NodesFleet(cluster, storage, tmp_path_factory.mktemp("nodes")) as made:
        made.write(alerts_to=webhook)
        made.trial.prepare(storage, local_weights())
        made.project.up()
        wait_until(lambda: len(workers(made)) == 2, what="the replica that only the schedule asks for", seconds=240)
        made.wait_for_gateways()
        yield made
