"""Faults of a live local stack: its real Ray and Serve, gateway, Pulumi state and files, with light applications.

The applications are two models of the stack's files. A replica that is to fail runs what a model's replica runs before
vLLM starts (`serving/weights.py`), against a Hub and an S3 of this process that answer as those do.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from modelfleet.infra.local.token import token_file
from modelfleet.serving.config.errors import SetupError
from tests.doctor_faults import Doctor, Fault, healthy
from tests.ports import free_port
from tests.waiting import wait_until

# The table in docs/doctor.md reads `FAULTS` alone.
if TYPE_CHECKING:
    from modelfleet.infra.gateway import Runtime
    from modelfleet.infra.local.provider.serve_api import ServeApi
    from modelfleet.infra.planning.plan import Plan
    from tests.engine.local_stack import LocalStack

Broken = AbstractContextManager[object]
MODELS: Final = ("first", "second")
#: The model that faults concern.
SICK: Final = "second"
KEY: Final = "sk-of-a-test-0123456789abcdef"

#: What every S3 client needs.
AWS: Final = {
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_REGION": "us-west-2",
    "AWS_MAX_ATTEMPTS": "1",
}

#: A replica that does what its arguments say before it is ready. `weights` is the real first step of a model's replica.
APPLICATION: Final = """\
import os

from ray import serve


def weights(args):
    from modelfleet.serving.config.schema import ModelConfig
    from modelfleet.serving.weights import resolve

    resolve(ModelConfig.model_validate(args["model"]), args["weights"])


def memory(args):
    import torch

    torch.empty(1 << 50, dtype=torch.uint8)


def damaged(args):
    from safetensors import safe_open

    safe_open(__file__, framework="numpy")


def full(args):
    with open("/dev/full", "wb") as disk:
        disk.write(bytes(1 << 20))


class Model:
    def __init__(self, args):
        if "does" in args:
            globals()[args["does"]](args)

    async def __call__(self, request):
        return os.getpid()


def build(args):
    options = {"num_cpus": 0, "resources": {"accelerator_type:CPU": args.get("cpus", 0.001)}}
    deployment = serve.deployment(Model, name="Echo", ray_actor_options=options, max_constructor_retry_count=1)
    return deployment.bind(args)
"""


#: What the Hub and S3 say where something is wrong, by the first part of a repository's name or the bucket: huggingface_hub
#: reads the code and a header, botocore XML.
HUB: Final[Mapping[str, tuple[int, str]]] = {
    "absent": (401, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "org": (404, "RevisionNotFound"),
}
S3: Final[Mapping[str, tuple[int, str]]] = {
    "no-bucket": (404, "NoSuchBucket"),
    "denied": (403, "AccessDenied"),
    "expired": (400, "ExpiredToken"),
    "empty": (404, "NoSuchKey"),
}


class Refusals(BaseHTTPRequestHandler):
    """Answers as the Hub and S3 do."""

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].split("/")
        is_hub = parts[1:3] == ["api", "models"]
        code, error = HUB.get(parts[3], (404, "")) if is_hub else S3.get(parts[1], (404, ""))
        body = b"" if is_hub else f"<Error><Code>{error}</Code><Message>m</Message></Error>".encode()
        self.send_response(code)
        self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


@contextmanager
def hub_and_s3() -> Iterator[str]:
    """The address of both."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusals) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@dataclass
class Live:
    """A local stack that serves two models, and its doctor."""

    stack: LocalStack
    doctor: Doctor
    plan: Plan
    api: ServeApi
    runtime: Runtime
    hub: str
    #: Process ids of the gateway's two processes.
    gateway: list[int] = field(default_factory=list)

    @property
    def stack_file(self) -> Path:
        return self.doctor.root / "stacks" / f"Pulumi.{self.doctor.stack}.yaml"

    def config(self, name: str = SICK, **changed: Any) -> dict[str, Any]:
        """A model's application as Serve gets it."""
        args = self.stack.applications[name]
        own = {"name": name, "route_prefix": f"/{name}", "import_path": "echo:build", "args": args, "runtime_env": {}}
        return {**own, "deployments": [{"name": "Echo"}], **changed}

    def start_gateway(self, plan: Plan | None = None) -> None:
        """Both processes, by the files of a plan."""
        from modelfleet.infra.gateway import render
        from modelfleet.infra.local import haproxy

        files = render((plan or self.plan).gateway, self.runtime, upstream=f"127.0.0.1:{self.stack.ports['serve']}")
        haproxy.write(files, self.runtime, {"alice": KEY})
        made = haproxy.start(self.runtime, haproxy.find_binary(), self.stack.run_folder / "gateway.log")
        self.gateway = [made.gateway, made.bodies]

    def stop_gateway(self) -> None:
        """As a crash does, with nothing left of it but its files."""
        for pid in self.gateway:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.gateway = []

    def ray_process(self, name: str) -> int:
        """The id of a process of this stack's Ray, by a word of its command."""
        from modelfleet.infra.local.provider.last_start import of_last_start

        found = [one.pid for one in of_last_start(self.stack.run_folder) if name in " ".join(one.cmdline()[:3])]
        assert len(found) == 1, (name, found)
        return found[0]


@contextmanager
def live_of(stack: LocalStack) -> Iterator[Live]:
    """A stack's two applications as models of files beside its project, with a gateway in front."""
    from modelfleet.cli.pulumi_lock import clear_dead_locks
    from modelfleet.doctor.readers.state import Exported
    from modelfleet.infra.local.provider.folders import run_folder
    from modelfleet.infra.local.provider.serve_api import ServeApi
    from modelfleet.infra.local.runtime import gateway_runtime
    from tests.cluster.fleet import model, planned

    own = {f"{name}Port": stack.ports[name] for name in ("gcs", "serve", "dashboard")}
    own |= {"rayMetricsPort": stack.ports["metrics"], **{name: free_port() for name in ("gatewayPort", "metricsPort")}}
    pools = [{"name": "cpu", "accelerator": "CPU", "maxNodes": 1}]
    keys = {"auth": "keys", "apiKeys": {"alice": {"secure": "v1:of:a-test"}}}
    models = [model(name, "CPU", max_total_tokens=512) for name in MODELS]
    plan = planned(stack.folder, models, stack=stack.stack, target="local", pools=pools, local=own, **keys)
    (stack.folder / "code" / "sick.py").write_text(APPLICATION)
    stack.applications.clear()
    stack.applications.update(
        {one.slug: json.loads(json.dumps(one.application.as_config()["args"], default=dict)) for one in plan.models}
    )
    clear_dead_locks(f"file://{stack.state}")
    stack.refresh("--clear-pending-creates")  # what other tests cut off
    stack.up()
    environ = {name: stack.environ[name] for name in ("PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE_FILE")}
    state = Exported(stack.run("stack", "export", "--stack", stack.stack).stdout)
    folder, dashboard = str(stack.run_folder), f"http://127.0.0.1:{stack.ports['dashboard']}"
    runtime = gateway_runtime(folder, own["gatewayPort"], own["metricsPort"])
    run_folder(folder, "gw")
    with hub_and_s3() as hub:
        doctor = Doctor(stack.folder, stack.stack, environ, state, (KEY, token_file(folder).read_text().strip()))
        made = Live(stack, doctor, plan, ServeApi(dashboard, stack.ports["serve"], stack.run_folder), runtime, hub)
        made.start_gateway()
        try:
            yield made
        finally:
            made.stop_gateway()
            shutil.rmtree(runtime.run_folder)


@contextmanager
def real_state(live: Live) -> Iterator[None]:
    """The doctor asks Pulumi; elsewhere it has what Pulumi said at first, which saves most of a look's time."""
    before, live.doctor.state = live.doctor.state, None
    try:
        yield
    finally:
        live.doctor.state = before


# --- files and state --------------------------------------------------------------------------------------------


@contextmanager
def written(path: str, change: Callable[[str], str], live: Live) -> Iterator[None]:
    """A file of the user's that was edited after the last run; one that is not there yet is made of its neighbour."""
    file = live.doctor.root / path
    before = file.read_text() if file.exists() else None
    file.write_text(change(before or (file.parent / f"{SICK}.yaml").read_text()))
    try:
        yield
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_text(before)


@contextmanager
def another_backend(live: Live) -> Iterator[None]:
    """A colleague's machine, or a login to another backend: its state knows nothing of the stack."""
    before, empty = live.doctor.environ, live.doctor.root / "nothing"
    empty.mkdir(exist_ok=True)
    live.doctor.environ = {**before, "PULUMI_BACKEND_URL": f"file://{empty}"}
    try:
        with real_state(live):
            yield
    finally:
        live.doctor.environ = before


@contextmanager
def emptied(live: Live) -> Iterator[None]:
    """A state without resources, as after a `down`."""
    stack, name = live.stack, live.stack.stack
    before = stack.run("stack", "export", "--stack", name).stdout
    none = {**json.loads(before), "deployment": {"resources": []}}
    stack.run("stack", "import", "--stack", name, given=json.dumps(none))
    try:
        with real_state(live):
            yield
    finally:
        stack.run("stack", "import", "--stack", name, given=before)


@contextmanager
def at_work(live: Live, *, killed: bool) -> Iterator[None]:
    """An `up` that brings a changed model file; `killed` in the middle, as by a closed terminal."""
    from modelfleet.cli.pulumi_lock import clear_dead_locks

    stack, before = live.stack, dict(live.stack.applications[SICK])
    stack.applications[SICK] = {**before, "delay_s": 60}
    run = stack.start("up")

    def is_deploying() -> bool:
        found = live.api.application(SICK) or {}
        return bool(found.get("status") == "DEPLOYING")

    wait_until(is_deploying, seconds=120, what="the change to reach Serve")
    if killed:
        run.kill()
    try:
        with real_state(live), written(f"models/{SICK}.yaml", _longer, live):
            yield
    finally:
        if not killed:
            run.kill()
        wait_until(lambda: not _pulumi_alive(stack), what="the end of the run")
        stack.applications[SICK] = before
        clear_dead_locks(f"file://{stack.state}")
        stack.up()


def _pulumi_alive(stack: LocalStack) -> list[int]:
    """Processes of the run: all but Ray's and the gateway's, which are in sessions of their own."""
    ray = stack.ray()
    assert ray is not None
    run = []
    for pid in stack.living_processes():
        try:
            if os.getsid(pid) != ray.pid:
                run.append(pid)
        except ProcessLookupError:
            continue
    return run


# --- Ray --------------------------------------------------------------------------------------------------------


@contextmanager
def stopped_dashboard(live: Live) -> Iterator[None]:
    """Ray's dashboard hangs: it takes connections and answers none."""
    pid, before = live.ray_process("dashboard.py"), live.doctor.seconds
    os.kill(pid, signal.SIGSTOP)
    live.doctor.seconds = 5.0
    try:
        yield
    finally:
        live.doctor.seconds = before
        os.kill(pid, signal.SIGCONT)


@contextmanager
def dead(name: str, live: Live) -> Iterator[None]:
    """A process of Ray is killed, and all of Ray ends; `up` makes it again."""
    pid = live.ray_process(name)
    live.stack.settled = None
    os.kill(pid, signal.SIGKILL)
    try:
        yield
    finally:
        live.stack.up()


@contextmanager
def lost_token(live: Live) -> Iterator[None]:
    """Somebody cleans the stack's run-time folder up."""
    file = token_file(live.stack.run_folder)
    file.rename(file.with_suffix(".gone"))
    try:
        yield
    finally:
        file.with_suffix(".gone").rename(file)


@contextmanager
def other_dashboard_port(live: Live, *, answers: bool) -> Iterator[None]:
    """The stack file was edited after `up`: at its port for the dashboard another program listens, or none."""
    port = int(live.hub.rpartition(":")[2]) if answers else free_port()
    old = live.stack.ports["dashboard"]

    def change(text: str) -> str:
        return text.replace(f"dashboardPort: {old}", f"dashboardPort: {port}")

    with written(f"stacks/{live.stack_file.name}", change, live):
        yield


# --- Serve and the replicas --------------------------------------------------------------------------------------


@contextmanager
def deployed(live: Live, **changed: Any) -> Iterator[None]:
    """Serve gets another configuration of the model."""
    live.api.put(live.config(**changed))
    try:
        yield
    finally:
        live.api.put(live.config())


@contextmanager
def removed(live: Live) -> Iterator[None]:
    """Somebody deletes the application in Serve."""
    live.api.remove(SICK)
    try:
        yield
    finally:
        live.api.put(live.config())


@contextmanager
def killed_replica(live: Live) -> Iterator[None]:
    """The model's one replica is killed, and the next one takes as long as a model's does."""
    slow = {**live.config()["args"], "delay_s": 30}  # a look takes seconds where the machine is busy

    def new_one() -> int:
        found = live.stack.ask(SICK)
        return int(found["pid"]) if found["args"] == slow else 0

    with deployed(live, args=slow):
        pid = wait_until(new_one, seconds=240, what="the slow replica", retry=OSError)
        os.kill(pid, signal.SIGKILL)
        yield


def starts(does: str, environ: Mapping[str, str] | None = None, **weights: Any) -> Callable[[Live], Broken]:
    """A replica that does what one of `APPLICATION`'s functions says, for the model's own arguments and `weights`."""

    def broken(live: Live) -> Broken:
        args = {**live.config()["args"], "does": does, "weights": weights}
        if "id" in weights:  # a model file as a user may write it
            engine = {**args["model"]["engine_config"], "hf_model_id": weights["id"]}
            engine |= {"revision": weights["revision"]} if "revision" in weights else {}
            args["model"] = {**args["model"], "engine_config": engine}
        own = {"HF_ENDPOINT": live.hub, "AWS_ENDPOINT_URL": live.hub, "HF_HUB_OFFLINE": "0", **AWS, **(environ or {})}
        return deployed(live, import_path="sick:build", args=args, runtime_env={"env_vars": own})

    return broken


# --- the gateway --------------------------------------------------------------------------------------------------


@contextmanager
def killed_gateway(live: Live) -> Iterator[None]:
    """The gateway's processes are gone."""
    live.stop_gateway()
    try:
        yield
    finally:
        live.start_gateway()


@contextmanager
def taken_port(live: Live) -> Iterator[None]:
    """The gateway ended, and another program has its port now."""
    host, _, port = live.runtime.bind.rpartition(":")
    live.stop_gateway()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((host, int(port)))
        other.listen()
        try:
            yield
        finally:
            other.close()
            live.start_gateway()


@contextmanager
def no_socket(live: Live) -> Iterator[None]:
    """Somebody cleans /tmp up: the gateway runs, and nobody can talk to it."""
    Path(live.runtime.admin_socket).unlink()
    try:
        yield
    finally:
        live.stop_gateway()
        live.start_gateway()


@contextmanager
def without_keys(live: Live) -> Iterator[None]:
    """Somebody empties the gateway's map of keys."""
    from modelfleet.infra.local import haproxy

    haproxy.admin(live.runtime, f"clear map {live.runtime.key_map}")
    try:
        yield
    finally:
        haproxy.set_keys(live.runtime, {"alice": KEY})


@contextmanager
def older_gateway(live: Live) -> Iterator[None]:
    """A gateway that an earlier version of the files made."""
    from dataclasses import replace

    gateway = live.plan.gateway
    older = replace(gateway, routes=tuple(one for one in gateway.routes if one.slug != SICK))
    live.stop_gateway()
    live.start_gateway(replace(live.plan, gateway=older))
    try:
        yield
    finally:
        live.stop_gateway()
        live.start_gateway()


# --- the stack's own Prometheus ----------------------------------------------------------------------------------


@contextmanager
def watched(live: Live, *, metrics: int | None = None) -> Iterator[dict[str, Any]]:
    """The stack runs a Prometheus and an Alertmanager of its own; `metrics` is where it looks in place of all ports.

    Gives what Pulumi would keep of them. The doctor has nothing to say before they break.
    """
    from modelfleet.doctor.subject import open_subject
    from modelfleet.infra.local.provider import monitor
    from modelfleet.infra.observability.own import local_files
    from modelfleet.infra.provider import Call
    from tools.prometheus import alertmanager, prometheus

    ports = {"prometheusPort": free_port(), "alertmanagerPort": free_port()}

    def own(text: str) -> str:
        document = yaml.safe_load(text)
        document["config"]["modelfleet:local"] |= ports
        document["config"]["modelfleet:observability"] = {"metrics": "own"}
        return yaml.safe_dump(document, sort_keys=False)

    try:
        folders = [str(find().parent) for find in (prometheus, alertmanager)]
    except SetupError as error:
        pytest.skip(f"no Prometheus: {error}")
    call = Call[Any]({}, "urn", "monitor", monitor.MONITOR.token, 0, print)
    with written(f"stacks/{live.stack_file.name}", own, live), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join([*folders, os.environ["PATH"]]))
        plan = open_subject(live.doctor.root, live.doctor.stack).plan
        assert plan and plan.own_monitoring
        texts = local_files(plan, plan.own_monitoring)
        config = yaml.safe_load(texts["prometheus.yml"])
        for scrape in config["scrape_configs"]:
            scrape["scrape_interval"] = "1s"
            if metrics:
                scrape["static_configs"][0]["targets"] = [f"127.0.0.1:{metrics}"]
        texts["prometheus.yml"] = yaml.safe_dump(config)
        inputs = {"folder": str(live.stack.run_folder), **ports, "texts": texts, "retentionDays": 1, "keepMib": 100}
        state = {**inputs, **monitor.create(call, inputs).outputs}
        try:
            if metrics is None:
                healthy(live.doctor)
            yield state
        finally:
            monitor.delete(call, "monitor", state)
            for name in monitor.PROGRAMS:  # of this process, not of Pulumi's
                with suppress(ChildProcessError):
                    os.waitpid(state[f"{name}Pid"], 0)


@contextmanager
def killed_monitor(name: str, live: Live, *, port: str | None = None) -> Iterator[None]:
    """Prometheus or Alertmanager is killed; with `port` another program then has that key's port."""
    with watched(live) as state, socket.socket() as other:
        os.kill(state[f"{name}Pid"], signal.SIGKILL)
        os.waitpid(state[f"{name}Pid"], 0)
        if port:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", state[port]))
            other.listen()
        yield


@contextmanager
def broken_files(live: Live) -> Iterator[None]:
    """Somebody edits Prometheus' file, and has it read by a signal."""
    with watched(live) as state:
        (live.stack.run_folder / "monitor" / "prometheus.yml").write_text("scrape_configs: none")
        os.kill(state["prometheusPid"], signal.SIGHUP)
        yield


@contextmanager
def blind(live: Live) -> Iterator[None]:
    """Prometheus asks where nobody is."""
    with watched(live, metrics=free_port()):
        yield


misspelt: Final = partial(written, f"models/{SICK}.yaml", lambda text: text.replace("num_workers", "num_wrokers"))


def _longer(text: str) -> str:
    document = yaml.safe_load(text)
    document["engine_config"]["max_total_tokens"] = 1024
    return yaml.safe_dump(document)


FILES: Final = (
    Fault("file-at-fault", "a key of a model file is misspelt", misspelt),
    Fault("file-changed-since", "a model file is edited after `up`", partial(written, f"models/{SICK}.yaml", _longer)),
    Fault(
        "model-not-deployed",
        "a model file is added after `up`",
        partial(written, "models/third.yaml", lambda text: text.replace(SICK, "third")),
    ),
    Fault("never-brought-up", "a login to another backend", another_backend),
    Fault("nothing-in-state", "the state holds no resources", emptied),
)
RUNS: Final = (
    Fault("run-at-work", "an `up` is at work", partial(at_work, killed=False)),
    Fault("run-cut-off", "an `up` was killed", partial(at_work, killed=True)),
)
RAY: Final = (
    Fault("ray-hangs", "Ray's dashboard is stopped", stopped_dashboard),
    Fault("ray-token-lost", "the token of Ray is deleted", lost_token),
    Fault("ray-port-taken", "another program has the dashboard's port", partial(other_dashboard_port, answers=True)),
    Fault("ray-not-running", "nothing listens at the dashboard's port", partial(other_dashboard_port, answers=False)),
)
ABSENT: Final = Fault("application-absent", "the application is deleted in Serve", removed)
SERVE: Final = (
    Fault("health-check-failed", "a replica is killed", killed_replica),
    Fault(
        "runtime-env-failed",
        "the code is not where it was",
        partial(deployed, runtime_env={"working_dir": "file:///nowhere/code.zip"}),
    ),
    Fault("build-failed", "the image has no such module", partial(deployed, import_path="absent:build")),
)
#: The debugging cases of RayLLM's guide.
CASES: Final = (
    Fault("wrong-model-id", "the Hub has no such repository", starts("weights", id="absent/model")),
    Fault("gated-model", "the repository is gated", starts("weights", id="gated/model")),
    Fault("out-of-memory", "torch gets no memory", starts("memory")),
)
REPLICAS: Final = (
    Fault("no-such-revision", "the Hub has no such revision", starts("weights", id="org/model", revision="v9")),
    Fault(
        "hub-unreachable",
        "the node is offline, and the weights are not on it",
        starts("weights", {"HF_HUB_OFFLINE": "1"}, id="org/model"),
    ),
    Fault("not-a-model", "a folder without a model", starts("weights", id="/")),
    Fault("bucket-absent", "the bucket was deleted", starts("weights", mirror="s3://no-bucket/models/m")),
    Fault("bucket-denied", "a policy denies the bucket", starts("weights", mirror="s3://denied/models/m")),
    Fault("credentials-expired", "a token of AWS has expired", starts("weights", mirror="s3://expired/models/m")),
    Fault("mirror-incomplete", "the mirror is empty", starts("weights", mirror="s3://empty/models/m")),
    Fault("weights-damaged", "a file of weights is damaged", starts("damaged")),
    Fault("disk-full", "the disk is full", starts("full")),
)
GATEWAY: Final = (
    Fault("gateway-not-running", "the gateway is killed", killed_gateway),
    Fault("gateway-port-taken", "another program has the gateway's port", taken_port),
    Fault("gateway-port-taken", "the gateway's socket is deleted", no_socket),
    Fault("gateway-without-keys", "the map of keys is emptied", without_keys),
    Fault("gateway-older-than-files", "the gateway is of older files", older_gateway),
)
MONITOR: Final = (
    Fault("monitor-not-running", "Prometheus is killed", partial(killed_monitor, "prometheus")),
    Fault("monitor-not-running", "Alertmanager is killed", partial(killed_monitor, "alertmanager")),
    Fault(
        "monitor-port-taken",
        "another program has the port of a dead Prometheus",
        partial(killed_monitor, "prometheus", port="prometheusPort"),
    ),
    Fault("monitor-files-refused", "Prometheus is to read a broken file", broken_files),
    Fault("monitor-sees-nothing", "Prometheus asks where nobody is", blind),
)
LAST: Final = Fault("ray-not-running", "the raylet is killed", partial(dead, "raylet"))
#: Those that take a second or so, and RayLLM's cases.
QUICK: Final = (*FILES, *RAY, ABSENT, *CASES, *GATEWAY)
#: Those for which replicas, runs, Prometheus or Ray start.
SLOW: Final = (*SERVE, *REPLICAS, *MONITOR, *RUNS, LAST)
FAULTS: Final = (*QUICK, *SLOW)
