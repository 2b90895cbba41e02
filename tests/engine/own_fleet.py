"""A fleet in a folder of its own, made by the `modelfleet init` of a wheel: that of a release, or one built here."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import requests
import yaml

from modelfleet.infra.local.processes import ProcessId
from modelfleet.infra.local.provider.serve_api import ServeApi, Unreachable
from tests.engine.engine import PULUMI
from tests.engine.local_stack import marked_processes
from tests.ports import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
UV = str(Path(sys.prefix) / "bin" / "uv")
#: The wheel of the last release (`fixtures/README.md`).
(RELEASED,) = Path(__file__).with_name("fixtures").glob("modelfleet-*.whl")
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SLUG = "HuggingFaceTB--SmolLM2-135M-Instruct"
PORTS = ("gatewayPort", "servePort", "s3Port", "metricsPort", "rayMetricsPort", "dashboardPort", "gcsPort")
#: What a wheel is built from.
SOURCES = ("modelfleet", "cli", "doctor", "infra", "serving", "schemas", "requirements", "models", "stacks")
FILES = ("__main__.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "CHANGELOG.md")
#: Packages of a user's repository whose names are those of our folders. Importing one by mistake ends the process.
TAKEN = ("infra", "serving", "models", "tools", "cli", "tests")


def build_wheel(source: Path, out: Path) -> Path:
    """The wheel of a source tree, as `make release` builds it."""
    command = [
        UV,
        "build",
        "--quiet",
        "--wheel",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        str(out),
    ]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def sources_with(folder: Path, version: str) -> Path:
    """A copy of what a wheel is built from, with another version."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in FILES:
        shutil.copyfile(ROOT / name, folder / name)
    project = (folder / "pyproject.toml").read_text()
    with_version = re.sub(r'^version = ".*"$', f'version = "{version}"', project, flags=re.MULTILINE)
    (folder / "pyproject.toml").write_text(with_version)
    return folder


def make_fleet(folder: Path, wheel: Path) -> None:
    """The wheel's `modelfleet init`, the two commands of its README, and packages of the user's own in the way."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder.parent / "unpacked")
    init = [sys.executable, "-m", "modelfleet.cli.main", "init", str(folder), "--wheel", str(wheel)]
    environ = {**os.environ, "PYTHONPATH": str(folder.parent / "unpacked")}
    subprocess.run(init, cwd=folder.parent, env=environ, check=True, capture_output=True)
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(folder / ".venv")], check=True)
    install(folder)
    for name in TAKEN:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('this is the package {name} of the user')\n")
    another = next((folder / ".venv" / "lib").glob("python*")) / "site-packages" / "serving"
    another.mkdir()
    (another / "__init__.py").write_text("raise ImportError('this is the distribution serving of the user')\n")


def install(folder: Path) -> None:
    """`pip install --no-deps -r requirements.txt` in a fleet, from uv's cache."""
    python = str(folder / ".venv" / "bin" / "python")
    pins = str(folder / "requirements.txt")
    done = subprocess.run(
        [UV, "pip", "sync", "--quiet", "--require-hashes", "--python", python, pins], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    _take_bytecode(next((folder / ".venv" / "lib").glob("python*")) / "site-packages")


def _take_bytecode(packages: Path) -> None:
    """Link what this environment has compiled, which `make setup` does for a user's: Python looks at a source's time.

    uv links sources from its cache, so they have the same time in both. Without it, each new process of vLLM compiles.
    """
    ours = Path(sysconfig.get_path("purelib"))
    for compiled in ours.rglob("__pycache__"):
        theirs = packages / compiled.relative_to(ours)
        if theirs.parent.is_dir():
            theirs.mkdir(exist_ok=True)
            for file in compiled.iterdir():
                with suppress(FileExistsError):
                    os.link(file, theirs / file.name)


@dataclass
class Fleet:
    """A user's own repository, made by `modelfleet init` from a wheel; nothing in it knows this checkout."""

    folder: Path
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in PORTS})
    #: What runs: nothing, `MODEL` alone by the stack file of `write_stack()`, or something else.
    runs: Literal["nothing", "model", "other"] = "nothing"

    def write_stack(self, **more: Any) -> None:
        stack = yaml.safe_load((self.folder / "stacks" / "Pulumi.local.yaml").read_text())
        stack["config"]["modelfleet:local"] = self.ports
        stack["config"].update({f"modelfleet:{key}": value for key, value in more.items()})
        (self.folder / "stacks" / "Pulumi.test.yaml").write_text(yaml.safe_dump(stack))

    @property
    def environ(self) -> dict[str, str]:
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PULUMI_", "AWS_"))},
            "PULUMI_BACKEND_URL": f"file://{self.folder / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "of a test",
            "PATH": os.pathsep.join([str(PULUMI.parent), os.environ["PATH"]]),
            "MODELFLEET_TEST": str(self.folder),
        }

    def command(self, *arguments: str) -> list[str]:
        return [str(self.folder / ".venv" / "bin" / "modelfleet"), *arguments, "--stack", "test"]

    def modelfleet(self, *arguments: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs the command, with `more` added to its environment."""
        environ = self.environ | more
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=environ, capture_output=True, text=True, timeout=900
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def plain(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a command that is not about one stack."""
        command = [self.command()[0], *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def install(self, wheel: Path) -> None:
        """Another version of modelfleet alone."""
        python = str(self.folder / ".venv" / "bin" / "python")
        command = [UV, "pip", "install", "--quiet", "--no-deps", "--reinstall", "--python", python, str(wheel)]
        subprocess.run(command, check=True)

    def up_killed_when(self, moment: Callable[[], object], what: str) -> None:
        """`modelfleet up`, killed with its whole process group, as a closed terminal does."""
        log = (self.folder / "killed.log").open("ab")
        process = subprocess.Popen(
            self.command("up"), cwd=self.folder, env=self.environ, stdout=log, stderr=log, start_new_session=True
        )
        wait_until(lambda: moment() or process.poll() is not None, seconds=300, what=what)
        assert process.poll() is None, f"up ended before {what}: {(self.folder / 'killed.log').read_text()[-3000:]}"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def set_key(self, name: str, key: str) -> None:
        """An API key, as a secret of the stack file."""
        path = f"modelfleet:apiKeys.{name}"
        command = [
            str(PULUMI),
            "config",
            "set",
            "--secret",
            "--path",
            path,
            "--stack",
            "test",
        ]
        subprocess.run(command, input=key, cwd=self.folder, env=self.environ, check=True, text=True, timeout=120)

    def written(self) -> dict[Path, int]:
        """The files that Pulumi keeps, with the times of their last changes in nanoseconds."""
        return {file: file.stat().st_mtime_ns for file in (self.folder / "state").rglob("*")}

    def replicas(self, name: str) -> list[int]:
        """Process ids of an application's replicas."""
        deployments = self.applications()[name]["deployments"].values()
        return [replica["pid"] for deployment in deployments for replica in deployment["replicas"]]

    def ray(self) -> ProcessId:
        """The Ray that is in Pulumi's state."""
        ray = self._ray_outputs()
        return ProcessId(int(ray["pid"]), ray["started"])

    def serve_log(self) -> str:
        """What Serve's controller wrote: why it started and ended replicas."""
        logs = Path(self._ray_outputs()["logs"]) / "serve"
        return "\n".join(log.read_text() for log in sorted(logs.glob("controller_*.log")))

    def _ray_outputs(self) -> dict[str, Any]:
        (file,) = (self.folder / "state" / ".pulumi" / "stacks").rglob("test.json")
        resources = json.loads(file.read_text())["checkpoint"]["latest"]["resources"]
        (ray,) = (one["outputs"] for one in resources if one["type"] == "modelfleet:local:Ray")
        return dict(ray)

    def load(self) -> Load:
        """Requests to the gateway."""
        return Load(f"http://127.0.0.1:{self.ports['gatewayPort']}/v1")

    def applications(self) -> dict[str, Any]:
        api = ServeApi(
            f"http://127.0.0.1:{self.ports['dashboardPort']}",
            self.ports["servePort"],
            self.folder / ".modelfleet" / "local" / "test",
        )
        try:
            return dict(api.details(5).get("applications", {}))
        except Unreachable:
            return {}


class Load:
    """Requests one after another while the block runs."""

    def __init__(self, base_url: str) -> None:
        self.codes: list[int] = []
        self._url, self._stop = base_url, threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(300)

    def _ask(self) -> None:
        body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8}
        while not self._stop.is_set():
            # Where a model's one replica restarts, a request waits for the next one.
            self.codes.append(requests.post(f"{self._url}/completions", json=body, timeout=300).status_code)
            time.sleep(0.3)  # the engine would take the CPU that starts the next one


@contextmanager
def own_fleet(folder: Path, wheel: Path) -> Iterator[Fleet]:
    """A fleet from a wheel with a stack `test`, which is taken down at the end."""
    made = Fleet(folder)
    make_fleet(folder, wheel)
    (folder / "state").mkdir()
    made.write_stack()
    try:
        yield made
    finally:
        made.modelfleet("down", check=False)
    assert marked_processes(folder) == []
