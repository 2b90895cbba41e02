"""What the local target makes of this machine's cards: Ray's input, and nothing where something is missing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pulumi
import pytest

from modelfleet.infra.local.fleet import LocalFleet
from modelfleet.infra.local.provider.ray import _of_folder, ray_environment
from modelfleet.infra.local.runtime import usage_folder
from modelfleet.infra.planning import Plan, plan
from modelfleet.infra.planning.cards import Card, Gpus
from modelfleet.infra.planning.local import Machine
from modelfleet.infra.targets import build
from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.scaling import QUEUES_VARIABLE
from modelfleet.serving.usage import FOLDER_VARIABLE
from tests.unit.planning.builders import CODE, model, pool, stack

UUIDS = ("GPU-aaaa", "GPU-bbbb")
H100S = Gpus(cards=tuple(Card(uuid, "NVIDIA H100 80GB HBM3", 81559, (9, 0)) for uuid in UUIDS), driver="580.65.06")


def planned(gpus: Gpus) -> Plan:
    pools = [pool("h100", "H100", maxNodes=1), pool("l4", maxNodes=1), pool("cpu", "CPU", maxNodes=1)]
    return plan([model("org/a")], stack(*pools, target="local"), code=CODE, machine=Machine(1 << 36, gpus))


class Recorded(pulumi.runtime.Mocks):
    """Inputs by type."""

    def __init__(self) -> None:
        self.made: dict[str, dict[str, Any]] = {}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> Any:
        self.made[args.typ] = dict(args.inputs)
        return args.name, dict(args.inputs)

    def call(self, args: pulumi.runtime.MockCallArgs) -> Any:
        return {}, []


def test_ray_gets_the_machine_once_and_its_cards_by_uuid(tmp_path: Path) -> None:
    """Two pools of GPUs had twice the machine's cards, and three pools three times its CPUs."""
    engine, made = Recorded(), planned(H100S)
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(engine, project="modelfleet", stack="test", preview=True)

    @pulumi.runtime.test
    def program() -> None:
        LocalFleet("test", made, folder=tmp_path)

    program()
    ray = engine.made["modelfleet:local:Ray"]
    assert (ray["gpus"], ray["cpus"]) == (2, 32)
    assert ray["resources"] == {"accelerator_type:H100": 1, "accelerator_type:L4": 1, "accelerator_type:CPU": 1}
    environment = ray["environment"]
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa,GPU-bbbb"
    own = {FOLDER_VARIABLE, QUEUES_VARIABLE}
    assert not own & set(environment), "an upgrade that adds a variable here ends every model that runs"
    assert own <= set(_of_folder(str(tmp_path)))
    assert _of_folder(str(tmp_path))[FOLDER_VARIABLE] == str(usage_folder(tmp_path))
    assert environment["HF_HUB_OFFLINE"] == "0" and environment["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert "modelfleet:local:Weights" not in engine.made, "its weights went into a bucket in memory"


def test_ray_reads_the_uuids_that_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not those that the user's shell has: the plan has looked at them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    cards = planned(H100S).cards
    assert cards
    read = (
        "from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager as cards\n"
        "print(cards.get_current_process_visible_accelerator_ids())"
    )
    env = {**ray_environment(dict(cards.environment)), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, "-P", "-c", read], env=env, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == str(list(UUIDS)), done.stderr[-500:]
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID" and os.environ["CUDA_VISIBLE_DEVICES"] == "7"


def test_the_program_makes_nothing_where_something_is_missing(tmp_path: Path) -> None:
    old = Gpus(cards=H100S.cards, driver="535.183.01")
    with pytest.raises(SetupError, match="driver 535.183.01 is too old"):
        build(tmp_path, planned(old))
    assert list(tmp_path.iterdir()) == [], "the bucket's server was started"
