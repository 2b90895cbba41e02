"""The gateway's files, as the pods see them, through HAProxy's own checker."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra.kubernetes.manifests.gateway import (
    CONFIG_PATH,
    KEYS_PATH,
    METRICS_PORT,
    PORT,
    RUN_PATH,
    gateway_config,
    gateway_deployment,
    gateway_ingress,
)
from infra.kubernetes.manifests.namespace import disruption_budgets
from infra.kubernetes.names import SERVE_PORT, SERVE_SERVICE
from infra.local.haproxy import find_binary
from infra.planning import Plan
from tests.cluster.fleet import five_models, planned


@pytest.fixture
def root() -> Iterator[Path]:
    """A short folder: HAProxy's sockets lie below it, and Linux allows 107 bytes for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


def write_files(root: Path, plan: Plan, **replaced: str) -> Path:
    """The ConfigMap's files below `root` as the pod sees them in its own folders; the folder of the configuration."""
    names = {f"{path}/": f"{root / path.lstrip('/')}/" for path in (KEYS_PATH, CONFIG_PATH, RUN_PATH)} | replaced
    for path in (CONFIG_PATH, KEYS_PATH, RUN_PATH):
        (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    folder = root / CONFIG_PATH.lstrip("/")
    for name, text in gateway_config(plan)["data"].items():
        (folder / name).write_text(reduce(lambda t, pair: t.replace(*pair), names.items(), text))
    return folder


@pytest.mark.parametrize("config", ["haproxy.cfg", "bodies.cfg"])
def test_haproxy_takes_the_rendered_configuration(tmp_path: Path, root: Path, config: str) -> None:
    plan = planned(tmp_path / "project", five_models(), auth="none", gateway={"requestsPerMinute": 60})
    command = [find_binary(), "-c", "-f", str(write_files(root, plan) / config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Upstream:
    """Stands for Ray Serve: a stream that goes on until it is told to end."""

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
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def gateway_process(root: Path, plan: Plan, upstream: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The first container's command on this machine, and its address."""
    (port, metrics) = free_ports(2)
    service = f"{SERVE_SERVICE}.{plan.namespace}.svc.cluster.local:{SERVE_PORT}"
    ports = {f"bind :{PORT}": f"bind 127.0.0.1:{port}", f"bind :{METRICS_PORT}": f"bind 127.0.0.1:{metrics}"}
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


def test_a_pod_that_is_told_to_end_finishes_its_stream_and_takes_no_more(tmp_path: Path, root: Path) -> None:
    """SIGUSR1 is the official image's stop signal, which the kubelet sends."""
    plan = planned(tmp_path / "project", five_models(), auth="none")
    upstream = Upstream()
    with gateway_process(root, plan, upstream.address) as (process, address):
        poll(lambda: http.client.HTTPConnection(address, timeout=5).request("GET", "/health"), ConnectionError)
        stream = http.client.HTTPConnection(address, timeout=30)
        stream.request("GET", f"/{plan.models[0].slug}/v1/models")
        answer = stream.getresponse()
        assert (answer.status, answer.readline()) == (200, b"tick\n")
        process.send_signal(signal.SIGUSR1)
        poll_until_refused(address)
        assert answer.readline() == b"tick\n" and process.poll() is None
        upstream.end.set()
        assert answer.read().endswith(b"done\n")
        assert process.wait(30) == 0
    upstream.server.shutdown()


def poll(attempt: Callable[[], object], retry: type[Exception], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            attempt()
        except retry:
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            return


def poll_until_refused(address: str, seconds: float = 30) -> None:
    """Wait until nothing listens."""
    host, _, port = address.partition(":")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    raise AssertionError("it still listens")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_two_pods_apart_of_which_one_always_takes_requests(tmp_path: Path) -> None:
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
    # A pod that goes keeps its port open until nobody sends it requests any more, then ends with its last stream.
    leave = [int(c["lifecycle"]["preStop"]["exec"]["command"][1]) for c in (first, bodies)]
    assert 10 <= leave[0] < leave[1]
    assert pod["terminationGracePeriodSeconds"] >= max(leave) + plan.gateway.timeout_s


@pytest.mark.parametrize("timeout_s", [600, 3600, 7200])
def test_nothing_on_the_way_ends_a_quiet_stream_before_the_longest_request(tmp_path: Path, timeout_s: int) -> None:
    plan = planned(tmp_path, five_models(), gateway={"timeoutS": timeout_s, "hostname": "llm.example.org"})
    config = gateway_config(plan)["data"]["haproxy.cfg"]
    for side in ("client", "server"):
        assert f"timeout {side} {timeout_s}s" in config
    (ingress,) = gateway_ingress(plan)
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == str(timeout_s)
    attributes = annotations["alb.ingress.kubernetes.io/load-balancer-attributes"]
    # 4000 s is the most that an Application Load Balancer takes; streams of tokens are never quiet that long.
    assert attributes == f"idle_timeout.timeout_seconds={min(timeout_s, 4000)}"


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
