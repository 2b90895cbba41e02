"""What was measured on real cards: plans count with it, `gpu check` compares with it, and a file keeps it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelfleet.cli import gpu_check
from modelfleet.cli.models_bar import memory_bar
from modelfleet.cli.plan_table import basis_text
from modelfleet.infra.catalog import Measured, default_catalog
from modelfleet.infra.catalog.measured import as_csv, measured_rows
from modelfleet.infra.planning import plan
from modelfleet.infra.planning.facts import ModelFacts, facts_from_config
from modelfleet.infra.planning.fit import GIB, Setting, gpu_memory, memory_in, reserve_bytes, variant
from modelfleet.infra.planning.measured import Taken, Where, as_measured, compared, measured_of, on_measured
from modelfleet.infra.reading import measured as reading
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.serving.config.errors import InputErrors, SetupError
from modelfleet.serving.measure import Took, timed
from modelfleet.serving.versions import PRETENDED_CARD
from tests.unit.planning.builders import CODE, model, pool, stack
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
LLAMA, QWEN, OSS = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-8B", "openai/gpt-oss-20b"
CATALOG = default_catalog()
H100 = CATALOG.accelerators["H100"]


def facts_of(name: str, rows: tuple[Measured, ...] | None = None) -> ModelFacts:
    row = CATALOG.model(name)
    assert row and row.config
    catalog = CATALOG if rows is None else dataclasses.replace(CATALOG, measured=rows)
    return facts_from_config(row.config, "test", catalog, name=name)


def setting(facts: ModelFacts, **changed: object) -> Setting:
    """The one of the measured rows."""
    made = Setting(H100, 1, 8192, 0.9, 8192, 256, 2.0, "auto", facts.quantization, eager=False)
    return dataclasses.replace(made, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "tokens"), [(LLAMA, 442_560), (QWEN, 390_720), (OSS, 1_214_749)])
def test_a_model_that_was_measured_on_a_card_is_counted_as_it_was(name: str, tokens: int) -> None:
    """Of Llama's two starts the first one, which compiled and left less."""
    facts = facts_of(name)
    held, blocks = gpu_memory(facts, setting(facts)), memory_in(facts, setting(facts))
    assert held.measured == "H100, 2026-11-27"
    assert blocks.pool.tokens(int(held.kv_cache_mib * 1024**2), blocks.demand) == pytest.approx(tokens, rel=2e-4)
    estimate = gpu_memory(dataclasses.replace(facts, measured=()), setting(facts))
    assert estimate.measured is None and estimate.kv_cache_mib != pytest.approx(held.kv_cache_mib, abs=50)


def test_another_setting_of_it_keeps_the_difference() -> None:
    facts = facts_of(OSS)
    for changed in ({"length": 131072}, {"sequences": 64}, {"batched_tokens": 2048}, {"utilization": 0.5}):
        one = setting(facts, **changed)
        held, estimate = gpu_memory(facts, one), gpu_memory(dataclasses.replace(facts, measured=()), one)
        assert held.reserve_mib - estimate.reserve_mib == pytest.approx(
            gpu_memory(facts, setting(facts)).reserve_mib - reserve_bytes(facts, setting(facts)) / 1024**2
        )
        assert held.weights_mib == pytest.approx(13.03 * 1024)


@pytest.mark.parametrize(
    "changed",
    [
        {"workers": 2}, {"kv_dtype": "fp8"}, {"eager": True}, {"value_bytes": 4.0}, {"adapters": 2}, {"drafts": 1},
        {"quantization": "fp8"}, {"accelerator": CATALOG.accelerators["H200"]},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_what_was_not_measured_is_an_estimate(changed: dict[str, object]) -> None:
    facts = facts_of(LLAMA)
    assert gpu_memory(facts, setting(facts, **changed)).measured is None


def test_rows_of_another_vllm_do_not_count() -> None:
    rows = tuple(dataclasses.replace(row, vllm="0.33.0", weights_gib=40.0) for row in CATALOG.measured)
    facts = facts_of(LLAMA, rows)
    assert facts.measured and gpu_memory(facts, setting(facts)).measured is None
    assert as_measured(H100, dataclasses.replace(CATALOG, measured=rows)) == H100


def row_of(name: str, reserve_gib: float, **changed: object) -> Measured:
    """A row in which vLLM took that reserve."""
    (row, *_) = CATALOG.measured_of(name)
    kv = row.usable_gib * row.utilization - row.weights_gib - reserve_gib
    return dataclasses.replace(row, kv_gib=kv, **changed)  # type: ignore[arg-type]


def test_a_card_that_took_more_of_several_models_has_more_reserve_for_all() -> None:
    names = (LLAMA, QWEN, OSS)
    estimates = {name: reserve_bytes(facts_of(name), setting(facts_of(name))) / GIB for name in names}
    rows = tuple(row_of(name, estimates[name] + more) for name, more in zip(names, (0.2, 0.5, 2.0), strict=True))
    catalog = on_measured(dataclasses.replace(CATALOG, measured=rows))
    assert catalog.accelerators["H100"].reserve_more_mib == pytest.approx(512, abs=1), "the middle one"
    assert catalog.accelerators["L4"] == CATALOG.accelerators["L4"]
    assert on_measured(catalog) == catalog, "not twice"
    other = facts_of("Qwen/Qwen3-14B", rows)
    more = setting(other, accelerator=catalog.accelerators["H100"])
    gained = gpu_memory(other, more).reserve_mib - gpu_memory(other, setting(other)).reserve_mib
    assert gained == pytest.approx(512, abs=1)


def test_a_card_that_took_less_of_a_few_models_promises_no_more_for_others() -> None:
    """On the H100 of 2026-11-27 they took 0.3 GiB less than estimated, and one of 32B took more."""
    assert on_measured(CATALOG).accelerators["H100"] == H100


def test_a_card_that_is_not_in_the_table_has_the_memory_that_cuda_said() -> None:
    own = dataclasses.replace(H100, name="GeForce RTX 4090", usable_mib=24072, nvml=())
    row = dataclasses.replace(CATALOG.measured[0], accelerator=own.name, usable_gib=23.53)
    assert as_measured(own, dataclasses.replace(CATALOG, measured=(row,))).usable_mib == 24095


def test_the_plan_its_table_and_the_bar_say_what_was_measured() -> None:
    models = [model(LLAMA, "H100", max_total_tokens=8192), model("Qwen/Qwen3-14B", "H100", max_total_tokens=8192)]
    made = plan(models, stack(pool("h100", "H100")), code=CODE)
    assert [one.memory.measured for one in made.models if one.memory] == [None, "H100, 2026-11-27"]
    text = f"GPU memory: {LLAMA} measured on H100, 2026-11-27; the others are an estimate"
    assert basis_text(made.models) == text
    assert basis_text(made.models[:1]).startswith("GPU memory: an estimate; `modelfleet gpu check`")
    bars = [memory_bar(dataclasses.asdict(one.memory))[1] for one in made.models if one.memory]
    assert [bar.rpartition("; ")[2] for bar in bars] == ["estimate", "measured on H100, 2026-11-27"]


LLAMA_TOOK = Taken(79.18, 15.0, 0.41, 1.6, 54.25, 444_432, 0.3, 28.6, 6.322, 6.81, 8.385)


def test_a_plan_that_is_off_by_more_than_it_may_is_marked() -> None:
    facts = facts_of(LLAMA, ())
    lines = {(line.what, line.unit): line for line in compared(facts, setting(facts), LLAMA_TOOK)}
    reserve = lines["reserve", "GiB"]
    assert reserve.real == pytest.approx(2.01, abs=0.005) and reserve.ours == pytest.approx(2.55, abs=0.01)
    assert reserve.off and lines["KV cache", "GiB"].off and not lines["weights", "GiB"].off
    assert not lines["KV cache", "tokens"].off, "1.5 % of tokens are allowed"
    for share, off in ((1.021, True), (1.019, False), (0.981, False), (0.979, True)):
        tokens = int((lines["KV cache", "tokens"].ours or 0) * share)
        one = compared(facts, setting(facts), dataclasses.replace(LLAMA_TOOK, kv_tokens=tokens))
        assert next(line for line in one if line.unit == "tokens").off is off
    first = lines["first token, 1,024 in", "ms"]
    assert first.real == 28.6 and first.low and first.high and first.low < first.high and not first.off


def test_nothing_of_a_pretended_card_is_compared_with_its_memory_or_kept() -> None:
    facts = facts_of(LLAMA, ())
    pretended = Taken(kv_gib=0.5, kv_tokens=4096, token_ms_1=900.0, pretended=True)
    lines = compared(facts, setting(facts), pretended)
    assert [(line.what, line.unit, line.off) for line in lines if line.ours is not None] == [
        ("KV cache", "tokens", False)
    ]
    assert next(line for line in lines if line.unit == "tokens").ours == 4096, "of the same half GiB"
    where = Where("no card", "", LLAMA, "2026-11-30", "test")
    assert measured_of(pretended, facts, setting(facts), where) is None


def test_what_is_kept_is_what_plans_count_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seam: `gpu check --save` writes, the catalog reads, and the next plan has the real figures."""
    facts = facts_of(LLAMA, ())
    where = Where("NVIDIA H100 80GB HBM3", "580.65.06", LLAMA, "2026-12-01", "test, with a comma")
    fp8 = setting(facts, kv_dtype="fp8")
    row = measured_of(dataclasses.replace(LLAMA_TOOK, kv_tokens=888_864), facts, fp8, where)
    assert row and row.variant == variant(facts, fp8) == "kv_cache_dtype=fp8"
    monkeypatch.setattr(reading, "FILE", Path("/usr/lib/site-packages/measured.csv"))
    assert reading.save_measured([row], tmp_path) == tmp_path / "measured.csv"
    reading.save_measured([row], tmp_path)
    assert list(measured_rows(tmp_path / "measured.csv")) == [row, row], "one header"
    catalog = reading.known_catalog(tmp_path)
    held = gpu_memory(dataclasses.replace(facts, measured=catalog.measured_of(LLAMA)), fp8)
    assert held.measured == "H100, 2026-12-01" and held.kv_cache_mib == pytest.approx(54.25 * 1024, abs=1)


def test_a_file_that_an_editor_left_without_a_last_newline_keeps_its_last_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FILE", Path("/usr/lib/site-packages/measured.csv"))
    rows = [CATALOG.measured[0], CATALOG.measured[1]]
    (tmp_path / "measured.csv").write_text(as_csv(rows[:1], header=True).rstrip("\n"))
    reading.save_measured(rows[1:], tmp_path)
    assert list(measured_rows(tmp_path / "measured.csv")) == rows
    (tmp_path / "measured.csv").write_text("")
    reading.save_measured(rows, tmp_path)
    assert list(measured_rows(tmp_path / "measured.csv")) == rows, "an empty one gets its header"


def test_in_a_checkout_it_is_the_catalogs_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "infra" / "catalog" / "measured.csv"
    own.parent.mkdir(parents=True)
    own.write_text(as_csv((), header=True))
    monkeypatch.setattr(reading, "FILE", own)
    assert reading.save_measured([CATALOG.measured[0]], tmp_path) == own
    assert list(measured_rows(own)) == [CATALOG.measured[0]]


def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "measured.csv").write_text("accelerator,card\nH100,x\n")
    with pytest.raises(InputErrors, match=r"measured\.csv.*row 1 is not of measured\.csv's form"):
        reading.known_catalog(tmp_path)


def test_times_end_when_the_time_is_up() -> None:
    clock = [0.0]

    def run(count: int, prompt: int, answer: int) -> float:
        seconds = 0.01 * prompt / 1024 * count + 0.005 * answer
        clock[0] += 60.0
        return seconds

    took = timed(run, ends=500.0, took=Took(), now=lambda: clock[0])
    assert took.token_ms_1 == pytest.approx(5.0) and took.prefill_1024_ms == pytest.approx(15.0)
    assert took.token_ms_8 is None and took.untimed == "the time was up before 8 at once"
    whole = timed(run, ends=1e9, took=Took(), now=lambda: clock[0])
    assert whole.token_ms_32 == pytest.approx(5.0) and not whole.untimed


@pytest.fixture
def on_l4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{ROOT / 'tools/standin/bin/nvidia'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN_CARDS", "l4")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("on_l4")
def test_the_check_stops_in_one_line_where_it_can_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = gpu_check.Asked(network=False)
    monkeypatch.setattr(gpu_check, "_ask", lambda *_: pytest.fail("it started an engine"))
    with pytest.raises(SetupError, match="stack local serves on no card.*--stack gpu"):
        gpu_check.run_gpu_check("local", asked)
    with pytest.raises(SetupError, match="CPU build.*make setup-gpu"):
        gpu_check.run_gpu_check("gpu", asked)
    with monkeypatch.context() as here, pytest.raises(SetupError, match="a pretended card measures nothing"):
        here.setenv(PRETENDED_CARD, "1")
        gpu_check.run_gpu_check("gpu", dataclasses.replace(asked, save=True))
    with pytest.raises(SetupError, match="nothing that --pretend measures is a card's"):
        gpu_check.run_gpu_check("gpu", dataclasses.replace(asked, save=True, pretend=True))
    monkeypatch.setattr(gpu_check, "of_last_start", lambda folder: [1])
    with pytest.raises(SetupError, match="stack gpu runs.*modelfleet down --stack gpu"):
        gpu_check.run_gpu_check("gpu", dataclasses.replace(asked, pretend=True))


#: Lines of the H100 of 2026-11-27; the card of these tests is the stand-in's L4, so the plan is off.
H100_LOG = (
    "Model loading took 3.19 GiB memory and 1.2 seconds\nAvailable KV cache memory: 14.0 GiB\n"
    "GPU KV cache size: 76,448 tokens, Maximum\nActual usage is 3.55 GiB for consumed memory (weights + non-torch), "
    "1.1 GiB for peak activation, and 0.3 GiB for CUDAGraph memory.\n"
    "CUDA graph pool memory: 0.3 GiB (actual), 0.7 GiB (estimated)\n"
)


@pytest.mark.usefixtures("on_l4")
def test_the_check_asks_for_what_the_replica_would_and_reads_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = gpu_check.Asked(network=False)
    questions: list[dict[str, object]] = []

    def ask(question: dict[str, object], environment: dict[str, str], *_: object) -> tuple[dict[str, object], str]:
        assert environment["CUDA_VISIBLE_DEVICES"].startswith("GPU-0000") and "PYTHONPATH" in environment
        questions.append(question)
        return {"usable_gib": 21.95, "token_ms_1": 12.0}, H100_LOG

    monkeypatch.setattr(gpu_check, "_ask", ask)
    monkeypatch.setattr(gpu_check, "_require_a_free_card", lambda *_: None)
    assert gpu_check.run_gpu_check("gpu", asked, as_json=True) == 1
    shown = capsys.readouterr().out
    assert '"variant": ""' in shown and '"non_torch_gib": 0.36' in shown and '"peak_gib": 1.1' in shown
    arguments = questions[0]["arguments"]
    assert isinstance(arguments, dict)
    assert arguments["load_format"] == "dummy" and arguments["max_model_len"] == 8192
    assert arguments["max_num_batched_tokens"] == 2048
    assert (
        "served_model_name" in arguments
        and not {"disable_uvicorn_access_log", "enable_log_requests"} & arguments.keys()
    )
    assert gpu_check.run_gpu_check("gpu", asked) == 1
    text = capsys.readouterr()
    assert "the plan is off for HuggingFaceTB/SmolLM2-1.7B-Instruct: " in text.out
    assert "modelfleet gpu check --save" in text.err


@pytest.mark.usefixtures("on_l4")
def test_what_the_check_saves_is_what_the_next_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("Pulumi.yaml", "stacks/Pulumi.gpu.yaml", "models/l4/HuggingFaceTB--SmolLM2-1.7B-Instruct.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "FILE", Path("/usr/lib/site-packages/measured.csv"))
    monkeypatch.setattr(gpu_check, "_ask", lambda *_: ({"usable_gib": 21.95, "token_ms_1": 12.0}, H100_LOG))
    monkeypatch.setattr(gpu_check, "_require_a_free_card", lambda *_: None)
    assert gpu_check.run_gpu_check("gpu", gpu_check.Asked(save=True, network=False)) == 1
    assert "added 1 row to measured.csv" in " ".join(capsys.readouterr().err.replace(f"{tmp_path}/", "").split())
    (row,) = measured_rows(tmp_path / "measured.csv")
    assert (row.card, row.driver, row.kv_tokens) == ("NVIDIA L4", "580.65.06", 76_448)
    (planned,) = make_plan(tmp_path, "gpu", network=False, deploying=False).models
    assert planned.memory and planned.memory.measured == f"L4, {row.date}"


@pytest.mark.usefixtures("on_l4")
def test_memory_of_the_card_that_is_not_free_again_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> tuple[dict[str, object], str]:
        monkeypatch.setenv("STANDIN_USER", f"{os.getpid()}:500")  # what the engine left behind
        return {"usable_gib": 21.95}, H100_LOG

    monkeypatch.setattr(gpu_check, "_ask", ask)
    monkeypatch.setattr(gpu_check, "_require_a_free_card", lambda *_: None)
    monkeypatch.setattr(gpu_check, "FREE_S", 0.0)
    with pytest.raises(SetupError, match="the card has 500 MiB more in use than before; see which process has it"):
        gpu_check.run_gpu_check("gpu", gpu_check.Asked(network=False))


#: An engine that hangs, with a process that outlives it if nobody ends their group.
HANGS = """
import subprocess, sys, time
print(subprocess.Popen(["sleep", "600"]).pid, file=sys.stderr, flush=True)
time.sleep(40)  # then it ends by itself, which is another error
"""


def test_an_engine_that_says_nothing_new_is_ended_with_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    monkeypatch.setattr(gpu_check, "PROGRAM", "hangs")
    monkeypatch.setattr(gpu_check, "SILENCE_S", 2)
    environment = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    with pytest.raises(SetupError, match="a: vLLM said nothing new for 2 s and was ended"):
        gpu_check._ask({}, environment, tmp_path, "a")
    child = int((tmp_path / ".modelfleet" / "gpu-check" / "a.log").read_text())
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie", what="its end")


#: What vLLM 0.32.0's CPU build was asked, answered and logged on 2026-11-30, as the command got it:
#: `gpu check --model HuggingFaceTB/SmolLM2-135M-Instruct --pretend --offline` on the stand-in's L4.
RECORDED = Path(__file__).parent / "gpu_check"


@pytest.mark.usefixtures("on_l4")
def test_what_a_real_engine_answered_makes_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = json.loads((RECORDED / "recorded.json").read_text())
    questions: list[dict[str, Any]] = []

    def ask(question: dict[str, Any], *_: object) -> tuple[dict[str, Any], str]:
        questions.append(question)
        return recorded["answer"], (RECORDED / "vllm.txt").read_text()

    monkeypatch.setattr(gpu_check, "_ask", ask)
    asked = gpu_check.Asked(model="HuggingFaceTB/SmolLM2-135M-Instruct", pretend=True, network=False)
    assert gpu_check.run_gpu_check("gpu", asked) == 0
    for question in (*questions, recorded["question"]):
        del question["arguments"]["model"]  # a folder that is gone
    assert questions == [recorded["question"]], "the answer is of another question; record it again"
    assert recorded["answer"].keys() == dataclasses.asdict(Took()).keys()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for expected in (
        "HuggingFaceTB/SmolLM2-135M-Instruct, 0 s, vLLM 0.32.0",
        "unit ours real difference",
        "KV cache GiB - 0.50 -",
        "KV cache tokens 23,296 23,296 0 (+0.0%)",
        "first token, 1,024 in ms - 1,719.42 -",
        "a token, 1 at once ms - 87.16 -",
        "a token, 8 at once ms - 189.09 -",
        "not timed: the time was up before 32 at once",
    ):
        assert expected.split() in lines
    assert not [line for line in lines if line[:1] == ["weights"]], "the CPU build packs them out of sight"
