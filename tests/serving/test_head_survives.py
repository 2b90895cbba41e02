"""The head's processes die and come back elsewhere, with their state in Redis: replicas and open streams go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from modelfleet.infra.kubernetes.manifests.ray import ray_cluster
from modelfleet.infra.local import ray_head
from tests.bare_python import bare_python, code_with
from tests.cluster.fleet import model as model_file
from tests.cluster.fleet import planned
from tests.serving.conftest import application, model
from tests.serving.ray_pods import BRIDGE_ADDRESS, Pods
from tests.waiting import wait_until
from tools.redis_server import redis_server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for pods' namespaces")]

MODEL = "test/light"
SLUG = "test--light"
HEAD, WORKER, ELSEWHERE = "10.213.0.2", "10.213.0.3", "10.213.0.4"
#: KubeRay's name of the head's Service, which workers start with.
HEAD_NAME = "fleet-head-svc"
PASSWORD = "a-token-of-32-characters-or-more"
STORE = f"rediss://{BRIDGE_ADDRESS}:6379"
#: What KubeRay 1.6.2 adds where a RayCluster has `gcsFaultToleranceOptions` (controllers/ray/common/pod.go).
ON_HEAD = {"RAY_REDIS_ADDRESS": STORE, "RAY_external_storage_namespace": "uid-of-the-raycluster"}
#: Machines are busy: a raylet ends if its agent starts late, and a node that answers late counts as dead.
PATIENCE = {"RAY_agent_register_timeout_ms": "300000", "RAY_health_check_failure_threshold": "60"}


CPU_POOL = {"name": "cpu", "accelerator": "CPU", "maxNodes": 1, "instanceTypes": ["m7i.2xlarge"]}
JSON = ("-H", "content-type: application/json")
#: Ray's least object store, because nothing large is stored, and one process fewer.
SMALL = (f"--object-store-memory={80 << 20}", "--include-log-monitor=false")

Seen = TypeVar("Seen")


class NoAnswer(Exception):
    """Nobody listens, or the answer is an error."""


class Fleet:
    """One head, one worker and the store, as KubeRay would start them for a stack."""

    def __init__(self, pods: Pods, folder: Path) -> None:
        self.pods, self.folder = pods, folder
        self._started: dict[str, tuple[Any, ...]] = {}
        self._ray = [str(bare_python(folder / "python")), "-P", ray_head.__file__, "start", "--block"]
        plan = planned(
            folder / "project", [model_file("org/m", "CPU")], pools=[CPU_POOL], kubernetes={"redisAddress": STORE}
        )
        cluster = ray_cluster(plan)
        common = {name: os.environ[name] for name in ("PATH", "HOME", "RAY_AUTH_MODE")} | PATIENCE
        self._worker = {**common, **_declared(cluster["workerGroupSpecs"][0])}
        self._head = {**common, **_declared(cluster["headGroupSpec"]), **ON_HEAD}
        assert "RAY_REDIS_CA_CERT" in self._head, "the head would not verify its store"
        self._head["RAY_REDIS_CA_CERT"] = str(folder / "store.crt")  # in place of the public authorities

    def start_head(self, address: str) -> None:
        """A new pod; for itself its name then leads to it."""
        self.resolve(["head"], address)
        options = [f"--node-ip-address={address}", "--port=6379", "--dashboard-host=0.0.0.0", "--num-cpus=0"]
        options += [f"--redis-password={PASSWORD}", *SMALL]
        self._start("head", address, [*self._ray, "--head", *options], self._head)

    def resolve(self, pods: Sequence[str], address: str) -> None:
        """What the head's name leads to in these pods from now on."""
        self.pods.resolve(HEAD_NAME, pods, address)

    def start_worker(self) -> None:
        """It knows its head by name only."""
        options = [f"--address={HEAD_NAME}:6379", f"--node-ip-address={WORKER}", "--num-cpus=1", *SMALL]
        options += ['--resources={"accelerator_type:CPU": 1}']
        self._start("worker", WORKER, [*self._ray, *options], self._worker)

    def _start(self, name: str, *how: Any) -> None:
        self.pods.start(name, *how)
        self._started[name] = how

    def ask(self, url: str, *more: str) -> str:
        """A request from the bridge, as gateway, operator and kubelet make them; raises `NoAnswer`."""
        command = ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "120", *more, url]
        done = subprocess.run(self.pods.beside(*command), check=False, capture_output=True, text=True)
        if done.returncode:
            raise NoAnswer(f"{url}: {done.stderr.strip()} {done.stdout[:2000]}")
        return done.stdout

    def serve_api(self, head: str, *more: str) -> Any:
        """Serve's REST API, which the operator talks to."""
        return json.loads(self.ask(f"http://{head}:8265/api/serve/applications/", *more) or "{}")

    def declare(self, head: str) -> None:
        """What the operator sends, until it is taken, at first and whenever a head answers again."""
        code = f"file://{self.folder}/code.zip"
        app = {**application(model(MODEL), module="light"), "runtime_env": {"working_dir": code}}
        listen = {"host": "0.0.0.0", "port": 8000}
        config = {"proxy_location": "EveryNode", "http_options": listen, "applications": [app]}
        (self.folder / "serve.json").write_text(json.dumps(config))
        send = ("-X", "PUT", *JSON, "-d", f"@{self.folder}/serve.json")
        self.wait(lambda: self.serve_api(head, *send) is not None, "the applications to be taken")

    def replicas(self, head: str) -> list[int]:
        """Process ids of the running replicas, as Serve's controller tells them; none before all is well."""
        app = self.serve_api(head)["applications"].get(SLUG, {})
        found = [one for deployment in app.get("deployments", {}).values() for one in deployment["replicas"]]
        return [one["pid"] for one in found if one["state"] == "RUNNING"] if app.get("status") == "RUNNING" else []

    def complete(self) -> int:
        """The process that answers a request to the worker's own proxy."""
        body = json.dumps({"model": MODEL, "max_tokens": 1})
        return int(json.loads(self.ask(f"http://{WORKER}:8000/{SLUG}/v1/completions", *JSON, "-d", body))["pid"])

    def is_live(self) -> bool:
        """What KubeRay's probes of a worker ask (1.6.2 controllers/ray/common/pod.go, initLivenessAndReadinessProbe)."""
        raylet = self.ask(f"http://{WORKER}:52365/api/local_raylet_healthz")
        return raylet == "success" and self.ask(f"http://{WORKER}:8000/-/healthz") == "success"

    def wait(self, look: Callable[[], Seen], what: str) -> Seen:
        """The first true value of a look that may fail at first.

        A raylet ends if its agent takes more than 15 s to start, and the kubelet starts a container again that ended.
        """

        def kept() -> Seen:
            for name, how in self._started.items():
                if self.pods.has_ended(name):
                    self.pods.start(name, *how)
            return look()

        return wait_until(kept, what=what, seconds=240, retry=NoAnswer, every_s=0.5)


class Stream:
    """One request whose answer goes on for longer than the test."""

    def __init__(self, fleet: Fleet) -> None:
        body = json.dumps({"model": MODEL, "max_tokens": 100_000, "pace_s": 0.1, "stream": True})
        command = ["curl", "--silent", "--no-buffer", *JSON, "-d", body, f"http://{WORKER}:8000/{SLUG}/v1/completions"]
        fleet.pods.run_beside("stream", command, os.environ)
        self._output = fleet.folder / "stream.log"

    def events(self) -> list[dict[str, Any]]:
        """What has come so far; a half line at the end is not yet an event."""
        lines = [line for line in self._output.read_text().splitlines(keepends=True) if line.startswith("data: ")]
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.endswith("\n")]


def _declared(group: dict[str, Any]) -> dict[str, str]:
    """The variables of a pod of the group whose values are in its manifest."""
    (container,) = group["template"]["spec"]["containers"]
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    folder = Path(tempfile.mkdtemp(prefix="mfh-", dir="/var/tmp"))
    (folder / "code.zip").write_bytes(code_with(Path(__file__).parent / "light.py"))
    _make_certificate(folder)
    try:
        with Pods(folder) as pods:
            _start_store(pods, folder)
            yield Fleet(pods, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_certificate(folder: Path) -> None:
    key, made = folder / "store.key", folder / "store.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=store"]
    names = ["-addext", f"subjectAltName=IP:{BRIDGE_ADDRESS}", "-keyout", str(key), "-out", str(made)]
    subprocess.run([*command, *names], check=True, capture_output=True)


def _start_store(pods: Pods, folder: Path) -> None:
    server = redis_server()
    settings = {
        "port": "0",
        "tls-port": "6379",
        "tls-cert-file": str(folder / "store.crt"),
        "tls-key-file": str(folder / "store.key"),
        "tls-auth-clients": "no",
        "bind": BRIDGE_ADDRESS,
        "requirepass": PASSWORD,
        "save": "",
        "dir": str(folder),
    }
    command = [str(server.program), *(word for key, value in settings.items() for word in (f"--{key}", value))]
    pods.run_beside("store", command, dict(server.environment))


def test_a_head_that_dies_and_comes_back_elsewhere_keeps_replicas_and_open_streams(fleet: Fleet) -> None:
    """Without its store, the next head knew nothing of the worker, whose replicas ended and loaded their models again.

    And with it, a replica was ended after 30 s if its worker did not find the next head before: it answers the head's
    controller at once, but the answer was too large for the call and waited for the object stores to find each other.
    """
    fleet.start_head(HEAD)
    fleet.wait(lambda: fleet.serve_api(HEAD), "the head's API")
    fleet.resolve(["worker"], HEAD)
    fleet.start_worker()
    fleet.declare(HEAD)
    fleet.wait(lambda: fleet.replicas(HEAD), "a replica")
    replica = fleet.wait(fleet.complete, "an answer")
    stream = Stream(fleet)
    fleet.wait(stream.events, "the stream's first words")

    fleet.pods.kill("head")
    seen = len(stream.events())
    fleet.wait(lambda: len(stream.events()) > seen + 10, "the stream to go on without a head")
    assert fleet.wait(fleet.complete, "an answer without a head") == replica
    assert fleet.wait(fleet.is_live, "the probe, which may fail now and then on a busy node"), "it would be restarted"

    fleet.start_head(ELSEWHERE)
    fleet.wait(lambda: fleet.serve_api(ELSEWHERE), "the next head's API")
    fleet.declare(ELSEWHERE)
    fleet.wait(lambda: fleet.replicas(ELSEWHERE), "the next controller to know a replica")
    assert fleet.replicas(ELSEWHERE) == [replica], "it is the one that there was"
    # Name service and gRPC's own pauses let a worker find the next head late; to the controller it must not matter.
    fleet.resolve(["worker"], ELSEWHERE)
    seen = len(stream.events())
    fleet.wait(lambda: len(stream.events()) > seen + 10, "the stream to go on with the next head")
    events = stream.events()
    assert [event["number"] for event in events] == list(range(len(events))), "no event is lost"
    assert {event["pid"] for event in events} == {replica}
    # While it looks for its replicas, a controller may leave new requests without one for a moment.
    assert fleet.wait(fleet.complete, "an answer with the next head") == replica
