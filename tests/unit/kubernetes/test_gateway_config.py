"""Checks the gateway's files, as the pods see them, with HAProxy's own checker."""

from __future__ import annotations

import http.client
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelfleet.infra.kubernetes.manifests.gateway import (
    CONFIG_PATH,
    KEYS_PATH,
    PORT,
    RUN_PATH,
    gateway_config,
    gateway_deployment,
    gateway_ingress,
    gateway_route,
)
from modelfleet.infra.kubernetes.manifests.namespace import disruption_budgets
from modelfleet.infra.kubernetes.names import GATEWAY_METRICS_PORT, SERVE_PORT, SERVE_SERVICE
from modelfleet.infra.kubernetes.preflight import missing_gateway
from modelfleet.infra.local.haproxy import find_binary
from modelfleet.infra.planning import Plan
from tests.cluster.fleet import five_models, planned
from tests.ports import free_ports
from tests.waiting import wait_until


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder with a short path: it has HAProxy's sockets, and Linux allows 107 bytes for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


def write_files(root: Path, plan: Plan, **replaced: str) -> Path:
    """Writes the ConfigMap's files under `root` as the pod sees them; returns the folder of the configuration."""
    names = {f"{path}/": f"{root / path.lstrip('/')}/" for path in (KEYS_PATH, CONFIG_PATH, RUN_PATH)} | replaced
    for path in (CONFIG_PATH, KEYS_PATH, RUN_PATH):
        (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    folder = root / CONFIG_PATH.lstrip("/")
    for name, text in gateway_config(plan)["data"].items():
        (folder / name).write_text(reduce(lambda t, pair: t.replace(*pair), names.items(), text))
    return folder


@pytest.mark.parametrize("config", ["haproxy.cfg", "bodies.cfg"])
def test_haproxy_accepts_the_rendered_configuration(tmp_path: Path, root: Path, config: str) -> None:
    plan = planned(tmp_path / "project", five_models(), auth="none", gateway={"requestsPerMinute": 60})
    command = [find_binary(), "-c", "-f", str(write_files(root, plan) / config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Upstream:
    """Plays Ray Serve: sends a stream until the test ends it."""

    def __init__(self) -> None:
        self.end = end = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                while not end.wait(0.05):
                    self.wfile.write(b"tick\n")
                self.wfile.write(b"done\n")

            def log_message(self, format: str, *args: object) -> None:
                """Logs nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def gateway_process(root: Path, plan: Plan, upstream: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Runs the first container's command on this machine; yields the process and its address."""
    (port, metrics) = free_ports(2)
    service = f"{SERVE_SERVICE}.{plan.namespace}.svc.cluster.local:{SERVE_PORT}"
    ports = {f"bind :{PORT}": f"bind 127.0.0.1:{port}", f"bind :{GATEWAY_METRICS_PORT}": f"bind 127.0.0.1:{metrics}"}
    write_files(root, plan, **ports, **{service: upstream})
    (container, _) = gateway_deployment(plan, "")["spec"]["template"]["spec"]["containers"]
    program, *words = container["command"]
    assert program == "haproxy"
    words = [word.replace(f"{CONFIG_PATH}/", f"{root / CONFIG_PATH.lstrip('/')}/") for word in words]
    process = subprocess.Popen([find_binary(), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process, f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


def test_a_pod_that_is_stopped_finishes_its_stream_and_takes_no_more(tmp_path: Path, root: Path) -> None:
    """SIGUSR1 is the official image's stop signal, which the kubelet sends."""
    plan = planned(tmp_path / "project", five_models(), auth="none")
    upstream = Upstream()
    with gateway_process(root, plan, upstream.address) as (process, address):
        wait_until(lambda: address in listens_at(process.pid), what="the gateway listens")
        stream = http.client.HTTPConnection(address, timeout=30)
        stream.request("GET", f"/{plan.models[0].slug}/v1/models")
        answer = stream.getresponse()
        assert (answer.status, answer.readline()) == (200, b"tick\n")
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: address not in listens_at(process.pid), what="the gateway takes no more connections")
        assert answer.readline() == b"tick\n" and process.poll() is None
        upstream.end.set()
        assert answer.read().endswith(b"done\n")
        assert process.wait(30) == 0
    upstream.server.shutdown()


def listens_at(pid: int) -> set[str]:
    """Where HAProxy's workers listen themselves: a port that they gave back may be another test's by now."""
    connections = [c for worker in psutil.Process(pid).children() for c in worker.net_connections("tcp")]
    return {f"{c.laddr.ip}:{c.laddr.port}" for c in connections if c.status == psutil.CONN_LISTEN}


def test_two_pods_are_spread_over_nodes_and_one_always_takes_requests(tmp_path: Path) -> None:
    plan = planned(tmp_path, five_models())
    deployment = gateway_deployment(plan, "")
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    pod = deployment["spec"]["template"]["spec"]
    spread = {one["topologyKey"] for one in pod["topologySpreadConstraints"]}
    assert spread == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for one in pod["topologySpreadConstraints"]:
        assert one["labelSelector"]["matchLabels"].items() <= labels.items()
    (budget,) = (b for b in disruption_budgets(plan) if b["metadata"]["name"] == "gateway")
    assert budget["spec"]["minAvailable"] == 1
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    first, bodies = pod["containers"]
    assert first["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    # A stopping pod keeps its port open until nobody sends it requests, then ends with its last stream.
    leave = [int(c["lifecycle"]["preStop"]["exec"]["command"][1]) for c in (first, bodies)]
    assert 10 <= leave[0] < leave[1]
    assert pod["terminationGracePeriodSeconds"] >= max(leave) + plan.gateway.settings.timeout_s


@pytest.mark.parametrize("timeout_s", [600, 3600, 7200])
def test_no_timeout_ends_a_quiet_stream_before_the_longest_request(tmp_path: Path, timeout_s: int) -> None:
    door = {"expose": "internal", "ingressClass": "nginx", "hostname": "llm.example.org", "tlsSecret": "llm-tls"}
    plan = planned(tmp_path, five_models(), gateway={"timeoutS": timeout_s, **door})
    config = gateway_config(plan)["data"]["haproxy.cfg"]
    for side in ("client", "server"):
        assert f"timeout {side} {timeout_s}s" in config
    (ingress,) = gateway_ingress(plan)
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == str(timeout_s)
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"


def test_every_file_that_the_configuration_names_is_mounted(tmp_path: Path) -> None:
    plan = planned(tmp_path, five_models())
    texts = gateway_config(plan)["data"]
    pod = gateway_deployment(plan, "id")["spec"]["template"]["spec"]
    commands = [container["command"][-1] for container in pod["containers"]]
    assert {Path(command).name for command in commands} <= set(texts)
    mounts = {m["mountPath"] for container in pod["containers"] for m in container["volumeMounts"]}
    assert mounts == {CONFIG_PATH, KEYS_PATH, RUN_PATH}


def test_changed_keys_or_routes_change_the_pods(tmp_path: Path) -> None:
    plan, fewer = planned(tmp_path, five_models()), planned(tmp_path, five_models()[:2])
    seen = [
        gateway_deployment(p, keys)["spec"]["template"]["metadata"]["annotations"]
        for p, keys in ((plan, "a"), (plan, "b"), (fewer, "a"))
    ]
    assert len({tuple(sorted(one.items())) for one in seen}) == 3


def routed(root: Path, **way: str) -> Plan:
    door = {"expose": "internal", "hostname": "llm.example.org", **way}
    return planned(root, five_models(), gateway=door, kubernetes={"image": "i:1"})


OWN = {"gatewayClass": "envoy", "tlsSecret": "llm-tls"}
FOREIGN = {"parentGateway": "infra/public/https"}


def test_a_route_of_the_gateway_api_ends_no_stream(root: Path) -> None:
    """Envoy's default ends a request after 15 s; `0s` is off."""
    (route,) = gateway_route(routed(root, **FOREIGN))
    assert route["spec"]["parentRefs"] == [{"namespace": "infra", "name": "public", "sectionName": "https"}]
    assert route["spec"]["hostnames"] == ["llm.example.org"]
    (rule,) = route["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert rule["backendRefs"] == [{"name": "gateway", "port": 8081}]
    assert gateway_ingress(routed(root / "other", **FOREIGN)) == []


def test_a_gateway_of_the_stack_has_tls_and_takes_this_namespaces_routes_alone(root: Path) -> None:
    made, route = gateway_route(routed(root, **OWN))
    (listener,) = made["spec"]["listeners"]
    assert (made["spec"]["gatewayClassName"], listener["protocol"], listener["port"]) == ("envoy", "HTTPS", 443)
    assert listener["tls"]["certificateRefs"] == [{"name": "llm-tls"}]
    assert listener["allowedRoutes"] == {"namespaces": {"from": "Same"}}
    (parent,) = route["spec"]["parentRefs"]
    assert (parent["namespace"], parent["name"]) == (made["metadata"]["namespace"], made["metadata"]["name"])
    assert parent["sectionName"] == listener["name"]


class Cluster:
    """What the preflight reads of a cluster."""

    def __init__(self, *found: str, protocol: str = "HTTPS", port: int = 443, takes: str | None = "All") -> None:
        allowed = {"allowedRoutes": {"namespaces": {"from": takes}}} if takes else {}
        self._found, self._listener = found, {"protocol": protocol, "port": port, **allowed}

    def get(self, _: str, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        listeners = [{"name": "https", **self._listener}, {"name": "tls", "protocol": "HTTPS", "port": 443}]
        return {"spec": {"listeners": listeners}} if f"{kind} {name}" in self._found else None


API = "CustomResourceDefinition httproutes.gateway.networking.k8s.io"


@pytest.mark.parametrize(
    ("way", "cluster", "said"),
    [
        (FOREIGN, Cluster(), "the cluster has no Gateway API"),
        (FOREIGN, Cluster(API), "Gateway infra/public does not exist"),
        (
            FOREIGN,
            Cluster(API, "Gateway public", protocol="HTTP"),
            "has no listener https of protocol HTTPS; those with it: tls",
        ),
        (
            FOREIGN,
            Cluster(API, "Gateway public", port=8443),
            "found port 8443, but clients use https://llm.example.org",
        ),
        (FOREIGN, Cluster(API, "Gateway public", takes=None), "from: Same, which shuts out this stack's route; let in"),
        (FOREIGN, Cluster(API, "Gateway public", takes="None"), "from: None, which shuts out"),
        (FOREIGN, Cluster(API, "Gateway public", takes="Selector"), None),
        ({"parentGateway": "modelfleet-dev/public/https"}, Cluster(API, "Gateway public", takes="Same"), None),
        (FOREIGN, Cluster(API, "Gateway public"), None),
        (OWN, Cluster(API), "the cluster has no envoy"),
        (OWN, Cluster(API, "GatewayClass envoy"), None),
    ],
    ids=[
        *("no definitions", "no Gateway", "plain text", "another port", "its namespace alone", "no routes"),
        *("some namespaces", "in its namespace", "fits", "no class", "class"),
    ],
)
def test_a_door_that_the_cluster_cannot_open_is_said_first(
    root: Path, way: dict[str, str], cluster: Cluster, said: str | None
) -> None:
    found = missing_gateway(cluster, routed(root, **way))  # type: ignore[arg-type]
    assert [said in one for one in found] == [True] if said else found == []
