"""One Ray with Serve for the whole tier: started and ended by process id, on its own ports and in its own folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from modelfleet.infra.local.processes import ProcessId, end_all, members, spawn
from modelfleet.infra.local.runtime import REPLICA_ENVIRONMENT, serve_environment
from modelfleet.infra.names import mark
from modelfleet.serving.scaling import QUEUES_VARIABLE
from modelfleet.serving.usage import FOLDER_VARIABLE
from tests.bare_python import bare_python
from tests.ports import free_ports
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
READY_S = 420.0
"""A vLLM start takes one to several minutes on two busy cores."""

#: One more node. `ray start` would look for the head at another address of this machine than 127.0.0.1, its only one.
JOIN = """import json, signal, sys
from ray._private.node import Node
from ray._private.parameter import RayParams
node = Node(RayParams(**json.loads(sys.argv[1])), head=False)
while True:
    signal.pause()"""

ENVIRONMENT = {
    **REPLICA_ENVIRONMENT,
    # Without the process that an engine starts only to bind its threads, which imports all of vLLM once more. The real
    # model's file sets it back.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@dataclass
class Cluster:
    """A running Ray; `put` replaces all Serve applications, as the REST API does."""

    dashboard: str
    serve_port: int
    metrics_port: int
    logs: Path
    #: Records of usage and of node time.
    usage: Path
    process: ProcessId
    #: Where the scaling policy asks the gateway how many requests wait: the metrics port of `front`.
    queues_port: int
    #: Where further nodes join it, and their environment and Python.
    address: str = ""
    python: Path = Path()
    environment: dict[str, str] = field(default_factory=dict)
    declared: dict[str, dict[str, Any]] = field(default_factory=dict)

    def serve(self, *applications: dict[str, Any]) -> None:
        """Declares additional applications; unchanged ones are left alone."""
        self.declared |= {one["name"]: one for one in applications}
        self.put(self.declared.values())

    def remove(self, *names: str) -> None:
        """Removes applications, so that two cores are enough for the others."""
        self.declared = {name: one for name, one in self.declared.items() if name not in names}
        self.put(self.declared.values())

    def put(self, applications: Iterable[dict[str, Any]]) -> None:
        """Declares the applications; all others are deleted."""
        config = {
            "http_options": {"host": "127.0.0.1", "port": self.serve_port},
            "proxy_location": "HeadOnly",
            "applications": list(applications),
        }
        answer = requests.put(f"{self.dashboard}/api/serve/applications/", json=config, timeout=60)
        assert answer.status_code == 200, answer.text

    def application(self, name: str) -> dict[str, Any]:
        """The application's details as Serve reports them; empty until Serve knows it."""
        answer = requests.get(f"{self.dashboard}/api/serve/applications/", timeout=60)
        found: dict[str, Any] = answer.json()["applications"].get(name, {})
        return found

    def replicas(self, name: str) -> list[dict[str, Any]]:
        """The application's replicas: state, pid and so on."""
        return [
            replica for one in self.application(name).get("deployments", {}).values() for replica in one["replicas"]
        ]

    def wait(self, name: str, status: str = "RUNNING", within_s: float = READY_S) -> dict[str, Any]:
        """The application once it has `status`; fails when it fails or takes too long."""

        def look() -> dict[str, Any] | None:
            details = self.application(name)
            assert details.get("status") != "DEPLOY_FAILED" or status == "DEPLOY_FAILED", details
            return details if details.get("status") == status else None

        return wait_until(look, what=f"{name} is {status}", seconds=within_s, every_s=0.5) or {}

    def url(self, name: str) -> str:
        """Base of the application's own route."""
        return f"http://127.0.0.1:{self.serve_port}/{name}"

    def metrics(self) -> str:
        """Ray's scrape of this node."""
        return requests.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30).text

    def join(self, folder: Path, cpus: int, resources: dict[str, float]) -> ProcessId:
        """Starts one more node of this Ray on this machine, as `ray.cluster_utils` does; who calls it ends it."""
        folder.mkdir(parents=True, exist_ok=True)
        dashboard_agent, metrics = free_ports(2)
        options = {
            "gcs_address": self.address,
            "node_ip_address": "127.0.0.1",
            "dashboard_agent_listen_port": dashboard_agent,
            "metrics_export_port": metrics,
            "min_worker_port": 0,
            "max_worker_port": 0,
            "num_cpus": cpus,
            "num_gpus": 0,
            "resources": resources,
            "object_store_memory": 80 * 2**20,
            "include_log_monitor": False,
        }
        command = [str(self.python), "-c", JOIN, json.dumps(options)]
        log = folder / "ray.log"
        return spawn(command, mark=mark(str(folder), "ray"), log=log, cwd=folder, env=self.environment)

    def stop(self) -> None:
        """Ends every process of this Ray and no other."""
        end_all(lambda: members(self.process), 10.0)


def start(folder: Path, environment: dict[str, str], cpus: int = 8, gpus: int = 0) -> Cluster:
    """Starts Ray with more CPUs than exist: they only count for placement, and all models share two cores.

    Its Python does not see this checkout: replicas have only the code zip, as in a pod. Ray gives its
    raylet 30 s and then ends; a busy machine may need two starts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    python = bare_python(folder / "python")
    for last in (False, False, True):
        cluster = _started(python, folder, environment, cpus, gpus)
        if _answers(cluster):
            return cluster
        cluster.stop()
        assert not last, (folder / "ray.log").read_text()[-2000:]
    raise AssertionError("unreachable")


def _started(python: Path, folder: Path, environment: dict[str, str], cpus: int, gpus: int) -> Cluster:
    gcs, dashboard, serve, agent, client, metrics, queues = free_ports(7)
    options = {
        "node-ip-address": "127.0.0.1",
        "port": gcs,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "metrics-export-port": metrics,
        "num-cpus": cpus,
        "num-gpus": gpus,
        "resources": '{"accelerator_type:CPU": 1}',
        "object-store-memory": 128 * 2**20,
        "temp-dir": folder,
        "include-log-monitor": "false",
    }
    command = [str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--{name}={value}" for name, value in options.items()]
    # As the local target: nothing that changes Python for Ray's workers, such as PYTHONPATH.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env = {**own, **ENVIRONMENT, **serve_environment(serve), **environment}
    env |= {QUEUES_VARIABLE: f"127.0.0.1:{queues}", FOLDER_VARIABLE: str(folder / "usage")}
    process = spawn(command, mark=mark(str(folder), "ray"), log=folder / "ray.log", cwd=folder, env=env)
    logs = folder / "session_latest" / "logs"
    return Cluster(
        f"http://127.0.0.1:{dashboard}", serve, metrics, logs, folder / "usage", process, queues,
        f"127.0.0.1:{gcs}", python, env,
    )  # fmt: skip


def _answers(cluster: Cluster) -> bool:
    """True once Serve's API answers, False when Ray ended instead."""

    def look() -> str:
        if cluster.process.find() is None:
            return "ended"
        requests.get(f"{cluster.dashboard}/api/serve/applications/", timeout=10).raise_for_status()
        return "answers"

    what = "Ray's dashboard answers"
    return wait_until(look, what=what, seconds=READY_S, retry=requests.RequestException, every_s=0.5) == "answers"
