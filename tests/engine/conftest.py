"""Fixtures of the engine tier: a throwaway project, and an emulated AWS that all tests of a file share."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from modelfleet.infra.local.emulator import ACCESS_KEY as LOCAL_KEY
from tests.engine.engine import Project
from tests.ports import free_port
from tests.waiting import wait_until
from tools.cloud.app import NODES, TRAIL

REPOSITORY = Path(__file__).resolve().parents[2]


#: The administrator's access key. Tests make and look at things with it; what they test has a key of its own.
ADMINISTRATOR = "test"
#: The local target has a key of its own, which its emulator takes as it takes any.
KEYS = (ADMINISTRATOR, LOCAL_KEY)
START_TIMEOUT_S = 120


class Emulator:
    """The emulated AWS of a test file: `url`, boto3 clients, and a stop or a restart that forgets everything."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.start()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, service: str = "s3", region: str = "us-west-2") -> Any:
        """A boto3 client of the emulator."""
        return boto3.session.Session().client(
            service,
            region_name=region,
            endpoint_url=self.url,
            aws_access_key_id=ADMINISTRATOR,
            aws_secret_access_key=ADMINISTRATOR,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        )

    def buckets(self) -> set[str]:
        """The names of all buckets."""
        return {bucket["Name"] for bucket in self.client().list_buckets()["Buckets"]}

    def start(self) -> None:
        """Starts it, empty."""
        log = (self._state_dir / "cloud.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.cloud", f"--port={self.port}", *(f"--administrator={key}" for key in KEYS)],
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
        )
        log.close()
        wait_until(self._answers, seconds=START_TIMEOUT_S, what=f"an answer of the emulated AWS ({log.name})")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the emulated AWS ended while starting"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        """Ends it and loses all that it held."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=30)
            self._process = None

    def decisions(self) -> list[dict[str, Any]]:
        """Every permission that was asked for since the start: caller, operation, action, resource, allowed."""
        with urllib.request.urlopen(f"{self.url}{TRAIL}", timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)
            return found

    def switch(self, control: str, value: Any) -> None:
        """Sets one of the controls of `tools/cloud/app.py`, such as `SHORTAGE`."""
        request = urllib.request.Request(f"{self.url}{control}", data=json.dumps(value).encode(), method="PUT")
        urllib.request.urlopen(request, timeout=60).read()

    def nodes(self, region: str = "us-west-2") -> list[dict[str, Any]]:
        """The nodes of all clusters of a region, as their clusters see them."""
        with urllib.request.urlopen(f"{self.url}{NODES}?{region}", timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)
            return found

    def restart(self) -> None:
        """Restarts it on the same port, empty."""
        self.stop()
        self.start()


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """An emulator on a free port."""
    running = Emulator(tmp_path_factory.mktemp("emulator"))
    yield running
    running.stop()


@pytest.fixture
def project(tmp_path: Path, emulator: Emulator) -> Iterator[Project]:
    """An empty project whose `local_aws()` is the emulator; every process that it started must end before it does."""
    made = Project(tmp_path, config={"endpoint": emulator.url})
    yield made
    left = made.living_processes()
    assert not left, f"processes outlive their test: {left}"


@pytest.fixture
def dead_lock() -> Callable[..., Path]:
    """Writes the lock of a process that has ended."""
    return write_lock


def write_lock(backend: Path, *, project: str, stack: str, pid: int | None = None, host: str | None = None) -> Path:
    """A lock file as Pulumi writes it; without `pid`, of a process that has just ended."""
    if pid is None:
        ended = subprocess.Popen([sys.executable, "-c", "pass"])
        ended.wait()
        pid = ended.pid
    file = backend / ".pulumi" / "locks" / "organization" / project / stack / "0815.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "789Z")
    content = {"pid": pid, "username": "someone", "hostname": host or socket.gethostname(), "timestamp": now}
    file.write_text(json.dumps(content))
    return file
