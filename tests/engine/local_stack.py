"""A local stack with small Serve applications instead of vLLM: the real plugin and the real Ray, in seconds."""

from __future__ import annotations

import copy
import json
import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelfleet.infra.local.processes import ProcessId
from modelfleet.infra.names import local_folder
from modelfleet.infra.reading.code import zipped
from tests.engine.engine import PULUMI, Background, Project, Run
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]

APPLICATION = """\
import os
import time

from ray import serve
from starlette.requests import Request


@serve.deployment(ray_actor_options={"num_cpus": 0, "resources": {"accelerator_type:CPU": 0.001}})
class Echo:
    def __init__(self, args):
        time.sleep(args.get("delay_s", 0))
        if "refuse" in args:
            raise RuntimeError(args["refuse"])
        self.args = args

    async def __call__(self, request: Request):
        return {"pid": os.getpid(), "args": self.args}


def build(args):
    return Echo.bind(args)
"""

LIGHT = """\
import asyncio
import os

from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

VERSION = {version!r}


@serve.deployment(name="vllm", ray_actor_options={{"num_cpus": 0, "resources": {{"accelerator_type:CPU": 0.001}}}})
class Light:
    def __init__(self):
        if VERSION == "broken":
            raise RuntimeError("this release has a fault")

    async def __call__(self, request: Request):
        return StreamingResponse(self.ticks(), media_type="text/plain")

    async def ticks(self):
        for _ in range(20):
            yield f"{{VERSION}} {{os.getpid()}}\\n"
            await asyncio.sleep(0.1)
        yield "end\\n"


def build(args):
    return Light.bind()
"""

PROGRAM = """
import json
import sys

import pulumi

sys.path.insert(0, {root!r})
from modelfleet.infra.local.resources import LocalResource

config = pulumi.Config()
ports = config.require_object("ports")
ray = LocalResource("Ray", "ray", {{
    "folder": {folder!r},
    "gcsPort": ports["gcs"],
    "servePort": ports["serve"],
    "dashboardPort": ports["dashboard"],
    "rayMetricsPort": ports["metrics"],
    "cpus": 4,
    "resources": {{"accelerator_type:CPU": 1}},
    "environment": {{"PYTHONPATH": {path!r}, "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0"}},
}})
lights = config.require_object("lights")
after = []
if lights:
    after = [LocalResource("Release", "release", {{
        "folder": {folder!r},
        "servePort": ports["serve"],
        "dashboardPort": ports["dashboard"],
        "code": lights[0]["runtime_env"]["working_dir"],
        "configs": json.dumps(lights),
        "atOnce": 1,
    }}, pulumi.ResourceOptions(depends_on=[ray]))]
for light in lights:
    LocalResource("Application", light["name"], {{
        "folder": {folder!r},
        "ray": ray.id,
        "servePort": ports["serve"],
        "dashboardPort": ports["dashboard"],
        "config": json.dumps(light),
    }}, pulumi.ResourceOptions(depends_on=after))
if monitor := config.require_object("monitor"):
    webhook = config.get_secret("webhook")
    LocalResource("Monitor", "monitor", {{"folder": {folder!r}, "webhook": webhook, **monitor}})
for name, args in config.require_object("applications").items():
    LocalResource("Application", name, {{
        "folder": {folder!r},
        "ray": ray.id,
        "servePort": ports["serve"],
        "dashboardPort": ports["dashboard"],
        "config": json.dumps({{
            "name": name, "route_prefix": f"/{{name}}", "import_path": "echo:build", "args": args, "runtime_env": {{}},
            "deployments": [{{"name": "Echo"}}],
        }}),
    }})
"""


class LocalStack(Project):
    """A project whose program is Ray and one application per entry of `applications` (name → args).

    `config["monitor"]`, if not empty, is what its own Prometheus and Alertmanager are made of, with the secret `webhook`.
    """

    def __init__(self, folder: Path) -> None:
        self.run_folder = local_folder(folder, "test")  # where the command looks
        plugin = {"name": "modelfleet", "path": str(PULUMI.parent)}
        self.ports = {name: free_port() for name in ("gcs", "serve", "dashboard", "metrics")}
        super().__init__(
            folder,
            pulumi_yaml={"plugins": {"providers": [plugin]}, "options": {"refresh": "always"}},
            config={"ports": self.ports, "applications": {}, "lights": [], "monitor": {}},
        )
        #: What the last run left running next to Ray; None if unknown.
        self.settled: dict[str, dict[str, Any]] | None = None
        self.timeout_seconds = 900.0  # Ray, on a machine that runs other tests too
        (folder / "code").mkdir()
        (folder / "code" / "echo.py").write_text(APPLICATION)
        values = {"root": str(ROOT), "folder": str(self.run_folder), "path": f"{folder / 'code'}:{ROOT}"}
        self.program(PROGRAM.format(**values), prelude="")

    def light(self, version: str, surges: Mapping[str, int]) -> None:
        """Have the next `up` bring a light application for each of `surges`, in that order, with that `version`."""
        code = self.folder / "code" / f"{version}.zip"
        code.write_bytes(zipped([("README.txt", b""), ("light.py", LIGHT.format(version=version).encode())]))
        self.config["lights"] = [
            {
                "name": name,
                "route_prefix": f"/{name}",
                "import_path": "light:build",
                "args": {},
                "runtime_env": {"working_dir": f"file://{code}"},
                "deployments": [{"name": "vllm", "max_surge_percent": surge, "graceful_shutdown_timeout_s": 60.0}],
            }
            for name, surge in surges.items()
        ]

    def up(self, *more: str, check: bool = True) -> Run:
        """`pulumi up --yes`; notes what runs afterwards."""
        self.settled = None
        run = super().up(*more, check=check)
        if run.code == 0:
            self.settled = copy.deepcopy(self.applications)
        return run

    def start(self, operation: str, *more: str) -> Background:
        """As a project's; what runs afterwards is unknown."""
        self.settled = None
        return super().start(operation, *more)

    def destroy(self, *more: str, check: bool = True) -> Run:
        """`pulumi destroy --yes`."""
        self.settled = None
        return super().destroy(*more, check=check)

    @property
    def applications(self) -> dict[str, dict[str, Any]]:
        """Args by application name; change it and `up` again."""
        return self.config["applications"]  # type: ignore[no-any-return]

    def ask(self, name: str) -> dict[str, Any]:
        """What the application answers: its replica's process id and its args."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['serve']}/{name}", timeout=30) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def ray(self) -> ProcessId | None:
        """The Ray that is in the state."""
        for resource in self.resources("modelfleet:local:Ray"):
            return ProcessId(int(resource["outputs"]["pid"]), resource["outputs"]["started"])
        return None


def listening_addresses(leader: ProcessId) -> dict[str, str]:
    """Where the processes of `leader`'s session listen: `address:port` → the process's title."""
    import psutil

    ours = {pid for pid in psutil.pids() if _session(pid) == leader.pid}
    return {
        f"{found.laddr.ip.removeprefix('::ffff:')}:{found.laddr.port}": psutil.Process(found.pid).name()
        for found in psutil.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN and found.pid in ours
    }


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def marked_processes(folder: Path) -> list[int]:
    """Processes of any `modelfleet` or `pulumi` that was started with `MODELFLEET_TEST` set to `folder`."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MODELFLEET_TEST") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue  # another user's, or it has ended
    return found
