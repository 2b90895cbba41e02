"""Throwaway Pulumi projects for tests: the real engine, their own file backend, and an emulator.

    def test_something(project, emulator):          # fixtures of conftest.py
        project.program('''
            provider = local_aws()
            aws.s3.Bucket("mirror", opts=pulumi.ResourceOptions(provider=provider))
        ''')
        run = project.up()
        assert run.changes == {"create": 3}
        assert project.up().changes == {"same": 3}

Other needs can make a `Project` by hand, with any Pulumi.yaml, config, secrets and environment. It uses nothing of the
caller's Pulumi (backend, login, passphrase). Its command is the `pulumi` of the environment that runs the tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

PULUMI = Path(sys.prefix) / "bin" / "pulumi"
COMMAND_TIMEOUT_SECONDS = 240.0

PRELUDE = """\
import json
import pulumi
import pulumi_aws as aws

config = pulumi.Config()


def local_aws(name="emulator", **more):
    endpoint = config.require("endpoint")
    services = ["s3", "sts", "ec2", "eks", "iam", "kms", "cloudwatchlogs", "servicequotas", "sqs", "ssm"]
    settings = dict(
        region=config.get("region") or "us-west-2",
        access_key="test",
        secret_key="test",
        skip_credentials_validation=True,
        skip_metadata_api_check=True,
        skip_requesting_account_id=True,
        s3_use_path_style=True,
        endpoints=[{service: endpoint for service in services}],
    )
    return aws.Provider(name, **{**settings, **more})


"""
"""What `Project.program` puts before a program: imports, `config`, and `local_aws()`, a provider for the emulator."""


@dataclass(frozen=True)
class Run:
    """One finished command of the CLI."""

    arguments: Sequence[str]
    code: int
    stdout: str
    stderr: str
    events: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def text(self) -> str:
        """All that the user sees."""
        return self.stdout + self.stderr

    @property
    def changes(self) -> dict[str, int]:
        """How many resources were created, updated, deleted, replaced or kept (`same`), including the stack itself."""
        for event in reversed(self.events):
            if "summaryEvent" in event:
                return {key: number for key, number in event["summaryEvent"]["resourceChanges"].items() if number}
        return {}

    def steps(self) -> list[tuple[str, str]]:
        """What happened to each resource, as (operation, name), in order; unchanged ones are left out."""
        metadata = [event["resourcePreEvent"]["metadata"] for event in self.events if "resourcePreEvent" in event]
        return [(step["op"], step["urn"].rpartition("::")[2]) for step in metadata if step["op"] != "same"]

    def diagnostics(self, severity: str = "error") -> list[str]:
        """The engine's messages of one severity, without colour marks."""
        found = [event["diagnosticEvent"] for event in self.events if "diagnosticEvent" in event]
        return [one["message"].strip() for one in found if one["severity"] == severity and not one.get("ephemeral")]


class Project:
    """A Pulumi project in `folder` with its own state and passphrase; the first command makes `stack`."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "trial",
        stack: str = "test",
        pulumi_yaml: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        if not PULUMI.is_file():
            raise FileNotFoundError(f"{PULUMI} is missing; run: make tools")
        self.folder, self.name, self.stack = folder, name, stack
        self.state = folder / "state"
        self._events = folder / "events"
        for made in (self.state, self._events, folder / "infra"):
            made.mkdir(parents=True, exist_ok=True)
        (folder / "passphrase").write_text("a passphrase of a test")
        runtime = {"name": "python", "options": {"toolchain": "pip", "virtualenv": sys.prefix}}
        project = {"name": name, "runtime": runtime, "main": "infra/", **(pulumi_yaml or {})}
        (folder / "Pulumi.yaml").write_text(yaml.safe_dump(project))
        self.config: dict[str, Any] = dict(config or {})
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PULUMI_", "AWS_"))},
            "PULUMI_BACKEND_URL": f"file://{self.state}",
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(folder / "passphrase"),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DEBUG_COMMANDS": "true",  # for --event-log
            "NO_COLOR": "1",
            "MODELFLEET_TEST": str(folder),
            **(environ or {}),
        }
        self.timeout_seconds = COMMAND_TIMEOUT_SECONDS
        self._count = 0

    # --- the program and its config ------------------------------------------------------------------------

    def program(self, text: str, *, prelude: str = PRELUDE) -> None:
        """Writes `infra/__main__.py`."""
        (self.folder / "infra" / "__main__.py").write_text(prelude + textwrap.dedent(text))

    def set_secret(self, key: str, value: str) -> None:
        """Sets an encrypted config value, passed on stdin so that no process list shows it."""
        self._init()
        self.run("config", "set", "--secret", key, "--stack", self.stack, given=value)

    # --- commands ------------------------------------------------------------------------------------------

    def up(self, *more: str, check: bool = True) -> Run:
        """`pulumi up --yes`."""
        return self._operation("up", "--yes", "--skip-preview", *more, check=check)

    def preview(self, *more: str, check: bool = True) -> Run:
        """`pulumi preview`."""
        return self._operation("preview", *more, check=check)

    def refresh(self, *more: str, check: bool = True) -> Run:
        """`pulumi refresh --yes`."""
        return self._operation("refresh", "--yes", "--skip-preview", *more, check=check)

    def destroy(self, *more: str, check: bool = True) -> Run:
        """`pulumi destroy --yes`."""
        return self._operation("destroy", "--yes", "--skip-preview", *more, check=check)

    def run(self, *arguments: str, check: bool = True, given: str | None = None) -> Run:
        """Any command of the CLI, without a stack or events; a failure shows all that the user would see."""
        command = self._start(arguments, None, stdin=subprocess.PIPE if given is not None else subprocess.DEVNULL)
        return command.finish(check=check, given=given)

    def start(self, operation: str, *more: str) -> Background:
        """An operation (`up`, `destroy`, …) in the background, to be killed or interrupted."""
        return self._start(*self._arguments(operation, "--yes", "--skip-preview", *more))

    # --- what came of it -----------------------------------------------------------------------------------

    def outputs(self) -> dict[str, Any]:
        """The stack's outputs, secrets shown."""
        shown = self.run("stack", "output", "--json", "--show-secrets", "--stack", self.stack)
        return dict(json.loads(shown.stdout))

    def deployment(self) -> dict[str, Any]:
        """The state as `pulumi stack export` gives it, secrets encrypted."""
        self._init()
        return dict(json.loads(self.run("stack", "export", "--stack", self.stack).stdout)["deployment"])

    def resources(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The resources in the state, of one type when named (`aws:s3/bucket:Bucket`)."""
        found = self.deployment().get("resources", [])
        return [resource for resource in found if kind in (None, resource["type"])]

    def everything_on_disk(self) -> str:
        """All text under the state folder and the stack's file: where a secret must not be."""
        files = [*self.state.rglob("*"), *self.folder.glob("Pulumi*.yaml")]
        return "\n".join(file.read_text(errors="replace") for file in files if file.is_file())

    def lock_files(self) -> list[Path]:
        """The backend's lock files."""
        return list((self.state / ".pulumi" / "locks").rglob("*.json"))

    def living_processes(self) -> list[int]:
        """Processes of this project's commands that are still alive (the CLI, plugins, the program)."""
        mark = f"MODELFLEET_TEST={self.folder}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = mark in (folder / "environ").read_bytes().split(b"\0")
                if marked and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(int(folder.name))
            except OSError:
                continue  # it ended while we looked, or it is another user's
        return found

    # --- helpers -------------------------------------------------------------------------------------------

    def _init(self) -> None:
        settings = self.folder / f"Pulumi.{self.stack}.yaml"
        if not (self.state / ".pulumi" / "stacks" / self.name / f"{self.stack}.json").exists():
            settings.unlink(missing_ok=True)
            self.run("stack", "init", self.stack)
        present = yaml.safe_load(settings.read_text()) if settings.exists() else {}
        wanted = {key if ":" in key else f"{self.name}:{key}": value for key, value in self.config.items()}
        present["config"] = {**present.get("config", {}), **wanted}
        settings.write_text(yaml.safe_dump(present))

    def _arguments(self, operation: str, *more: str) -> tuple[list[str], Path]:
        self._init()
        self._count += 1
        events = self._events / f"{self._count}-{operation}.json"
        return [operation, "--stack", self.stack, "--event-log", str(events), *more], events

    def _operation(self, operation: str, *more: str, check: bool) -> Run:
        return self._start(*self._arguments(operation, *more)).finish(check=check)

    def _start(self, arguments: Sequence[str], events: Path | None, stdin: int = subprocess.DEVNULL) -> Background:
        # Files, not pipes: nobody reads while a test does something else, and a full pipe stops the engine.
        stdout, stderr = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 (they live as long as the command)
        process = subprocess.Popen(
            [str(PULUMI), *arguments, "--non-interactive"],
            cwd=self.folder,
            env=self.environ,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        return Background(process, arguments, events, stdout, stderr, self.timeout_seconds)


@dataclass
class Background:
    """A running command of a project."""

    process: subprocess.Popen[str]
    arguments: Sequence[str]
    events: Path | None
    stdout: IO[str]
    stderr: IO[str]
    timeout_seconds: float

    def ended(self) -> bool:
        """Whether the CLI has ended."""
        return self.process.poll() is not None

    def kill(self) -> None:
        """SIGKILL for the CLI alone, as the kernel's out-of-memory killer or a user would do it."""
        self.process.kill()
        self.process.wait()

    def interrupt(self) -> Run:
        """SIGINT for the CLI's whole process group, as Ctrl-C does it; waits for the end."""
        if not self.ended():
            os.killpg(self.process.pid, signal.SIGINT)
        return self.finish()

    def finish(self, *, check: bool = False, given: str | None = None) -> Run:
        """Waits for the end; with `check` a failure shows all that the user would see."""
        try:
            self.process.communicate(given, timeout=self.timeout_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"pulumi {self.arguments[0]} did not end:\n{''.join(self._said())}") from None
        stdout, stderr = self._said()
        run = Run(self.arguments, self.process.returncode, stdout, stderr, _read_events(self.events))
        if check and run.code != 0:
            raise AssertionError(f"pulumi {' '.join(self.arguments)}: exit code {run.code}\n{run.text}")
        return run

    def _said(self) -> tuple[str, str]:
        for file in (self.stdout, self.stderr):
            file.seek(0)
        return self.stdout.read(), self.stderr.read()


def _read_events(file: Path | None) -> list[dict[str, Any]]:
    if file is None or not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
