"""`make gpu-bench`: its card, its record, its end in time and its table. No card and no vLLM: servers are pretended."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.facts import facts_from_config
from modelfleet.serving import engine_log
from modelfleet.serving.app import AppArgs
from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.seal import Machine, seal_root, take
from tests.ports import free_port
from tools.bench import servers
from tools.bench.gpu import __main__ as command
from tools.bench.gpu import card
from tools.bench.gpu.card import MIB, Cards
from tools.bench.gpu.measure import Bench, planned
from tools.bench.gpu.record import DONE, Record
from tools.bench.gpu.steps import Step, steps
from tools.bench.gpu.table import table
from tools.bench.load import Load, Outcome, Target, p99
from tools.bench.servers import Ports

ROOT = Path(__file__).parents[3]
H100 = Cards("NVIDIA H100 80GB HBM3", 1, 81559, "580.1")
MACHINE = {"card": H100.name, "count": 1, "driver": "580.1", "vllm": "0.32.0", "model": "tiny", "pretended": False}
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
}  # fmt: skip
#: Lines of vLLM 0.32.0 on an H100, 2026-11-27.
LOG = """
Model loading took 15.0 GiB memory and 3.058807 seconds
torch.compile took 24.55 s in total
Available KV cache memory: 54.02 GiB
GPU KV cache size: 442,560 tokens, Maximum concurrency for 8,192 tokens per request: 54.02x
CUDA graph pool memory: 0.3 GiB (actual), 0.76 GiB (estimated), difference: 0.46 GiB
Graph capturing finished in 6 secs, took 0.30 GiB
init engine (profile, create kv cache, warmup model) took 64.88 s
"""


class Driver:
    """The driver's library with as many cards, below Ray's copy of NVIDIA's binding."""

    def __init__(self, names: list[bytes], total_mib: int = 81559, used_mib: int = 512) -> None:
        self.names, self.total, self.used = names, total_mib * MIB, used_mib * MIB

    def nvmlInitWithFlags(self, flags: int) -> int:
        return 0

    def nvmlShutdown(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.names)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.total, memory._obj.used = self.total, self.used
        return 0

    def nvmlDeviceGetName(self, handle: Any, name: Any, size: Any) -> int:
        name.value = self.names[0]
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = 9, 0
        return 0

    def nvmlSystemGetDriverVersion(self, version: Any, size: Any) -> int:
        version.value = b"580.1"
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a driver's library under the binding, which otherwise finds none here."""
    import ray._private.thirdparty.pynvml.pynvml as binding

    def put(library: Driver) -> None:
        monkeypatch.setattr(binding, "nvmlLib", library)
        monkeypatch.setattr(binding, "_nvmlGetFunctionPointer_cache", {})

    return put


def test_the_card_is_read_through_the_binding_that_ray_brings(driver: Any) -> None:
    driver(Driver([b"NVIDIA H100 80GB HBM3"] * 2))
    found = card.read_cards()
    assert found == Cards("NVIDIA H100 80GB HBM3", 2, 81559, "580.1", (9, 0))
    assert found.accelerator.name == "H100"
    assert card.used_mib() == [512, 512]


def test_a_card_that_the_table_lacks_is_planned_as_the_plan_does_and_says_so() -> None:
    unknown = Cards("NVIDIA GB999", 1, 200_000, "700", (10, 0)).accelerator
    assert (unknown.usable_mib, unknown.batched_tokens, unknown.compute_capability) == (196_000, 8192, (10, 0))
    assert unknown.name == "NVIDIA GB999 (not in the table)"


def test_a_driver_without_cards_is_one_line(driver: Any) -> None:
    driver(Driver([]))
    with pytest.raises(SetupError, match="no NVIDIA card here: its driver counts none; run this on"):
        card.read_cards()


class NoDriver(Driver):
    def nvmlInitWithFlags(self, flags: int) -> int:
        return 9  # NVML_ERROR_DRIVER_NOT_LOADED


def test_without_a_driver_the_command_ends_with_2_and_one_line(driver: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine with a card too, where it would begin to measure."""
    driver(NoDriver([]))
    assert command.main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "no NVIDIA card here" in said.err and "--pretend" in said.err


def test_the_bench_imports_only_what_the_clusters_image_has() -> None:
    script = (
        "import sys, tools.bench.gpu.__main__\nprint(*sorted({name.split('.')[0] for name in sys.modules}), sep='\\n')"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    names = importlib.metadata.packages_distributions()
    normal = {re.sub(r"[-_.]+", "-", one).lower() for module in found.stdout.split() for one in names.get(module, ())}
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements/cluster.txt").read_text(), re.MULTILINE))
    # pyOpenSSL: botocore takes it where it is, and does without (`botocore/httpsession.py`).
    assert normal - pinned - {"modelfleet", "pyopenssl"} == set()


ANY_MACHINE = Machine(card=H100.name, architecture="x86_64", features=["avx2"], python="3.12", packages={})


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@dataclass
class Servers:
    """Pretended servers: `seconds` to start, and a load that notes what was asked; `fails` start never."""

    seconds: float = 0.0
    fails: str = ""
    started: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    asked: list[tuple[str, int, bool]] = field(default_factory=list)
    most: int = 10**6
    roots: list[tuple[Path, bool]] = field(default_factory=list)
    taken: list[bool] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    cached: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def serve(self, variant: servers.Variant, model: Any, ports: Any, logs: Path) -> Iterator[servers.Running]:
        ModelConfig.model_validate(model)
        self.started.append(variant.name)
        try:
            time.sleep(self.seconds)
            if variant.name == self.fails:
                raise RuntimeError("vllm serve ended with exit code 1:\n  CUDA out of memory")
            (logs / "engine.log").write_text(LOG)
            self.compile(variant)
            line = "ready 30.5 s after the start of its process: Ray's worker 2.2 s, weights 0.1 s, engine 19.4 s"
            target = Target(f"{variant.name}, replica's port", "http://127.0.0.1:1", "/", "m")
            own = Target(f"{variant.name}, gateway own route", "http://127.0.0.1:1", "/", "m")
            tree: Any = SimpleNamespace(seconds=lambda: {"front": 0.0, "engine": 1.0})
            yield servers.Running([target, own], tree, 66.9, line, (logs,))
        finally:
            self.ended.append(variant.name)

    def compile(self, variant: servers.Variant) -> None:
        """What a replica does with its caches: it takes the seal where there is one, and fills the rest."""
        root = Path(variant.environment["VLLM_CACHE_ROOT"])
        if variant.seal is not None:
            root = seal_root(variant.seal, variant.environment)
            names = {name.lower(): value for name, value in variant.environment.items() if name.startswith("AWS_")}
            s3 = boto3.client(
                "s3",
                endpoint_url=names.pop("aws_endpoint_url"),
                region_name=names.pop("aws_default_region"),
                **names,
            )
            self.roots.append((root, root.exists()))
            self.taken.append(take(variant.seal, root, ANY_MACHINE, self.said.append, s3=s3))
            self.cached = {path.relative_to(root).as_posix(): path.read_text() for path in files_of(root)}
            (root / "of-the-sealed-replica").touch()
            return
        (kernel := root / "torch_compile_cache" / "kernel.so").parent.mkdir(parents=True, exist_ok=True)
        kernel.write_text(f"made for {kernel}")

    def send(self, target: Target, load: Load) -> Outcome:
        if load.requests != 128:  # not the warm-up
            if len(self.asked) >= self.most:
                raise RuntimeError("the server went away")
            self.asked.append((target.name, load.concurrency, load.stream))
        return Outcome(100.0 if target.name.startswith("vllm") else 97.0, [0.01, 0.02, 0.03], 0)


def bench(tmp_path: Path, fake: Servers, **more: Any) -> Bench:
    record = Record(tmp_path / "rows.jsonl", MACHINE)
    facts = facts_from_config(LLAMA_8B, "test", default_catalog())
    more = {"ports": Ports(free_port() - Ports(0).store), "machine": lambda *, gpus: ANY_MACHINE, **more}
    made = Bench(H100, tmp_path, facts, record, tmp_path / "work", 1, serve=fake.serve, send=fake.send, **more)
    made._memory_at_rest = list  # type: ignore[method-assign]
    return made


@pytest.fixture(autouse=True)
def no_card_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.bench.gpu.measure.used_mib", list)


TWO = [Step("vllm serve"), Step("modelfleet")]


def test_a_run_goes_on_where_the_one_before_it_stopped(tmp_path: Path) -> None:
    first = Servers(most=8)
    command.measure(bench(tmp_path, first), TWO, time.monotonic() + 600)
    assert first.started == first.ended == ["vllm serve", "modelfleet"]
    second = Servers()
    again = bench(tmp_path, second)
    command.measure(again, TWO, time.monotonic() + 600)
    assert second.started == ["modelfleet"], "what was done is not done again"
    assert len(first.asked) == 8 and len(second.asked) == 4, "loads that are written are not repeated"
    assert len(again.record.of("load")) == 12 and again.record.is_done("modelfleet, uni, caches empty")
    third = Servers()
    command.measure(bench(tmp_path, third), TWO, time.monotonic() + 600)
    assert third.started == []


def test_a_step_with_empty_caches_finds_none_of_a_run_of_it_that_was_cut(tmp_path: Path) -> None:
    empty, filled = Step("modelfleet"), Step("modelfleet", caches="filled")
    made = bench(tmp_path, Servers())
    kept = made.caches_of(empty) / "vllm" / "compiled"
    for step, there in ((filled, True), (empty, False)):
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch()
        command.measure(made, [step], time.monotonic() + 600)
        assert made.record.is_done(step.name) and kept.exists() == there, step.name


def test_a_new_record_begins_with_an_empty_folder_and_one_that_goes_on_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_model_folder", lambda given: tmp_path)
    monkeypatch.setattr(command, "_version", lambda *names: "1")
    options = command._options().parse_args(["--out", str(tmp_path / "rows.jsonl")])
    left = tmp_path / "rows-work" / "bytecode" / "module.pyc"
    for there in (False, True):
        left.parent.mkdir(parents=True, exist_ok=True)
        left.touch()
        command._bench(H100, options)
        assert left.exists() == there


def test_a_row_is_on_the_disk_before_the_next_is_measured(tmp_path: Path) -> None:
    fake = Servers()
    made, lengths = bench(tmp_path, fake), []

    def send(target: Target, load: Load) -> Outcome:
        lengths.append(len(made.record.path.read_text().splitlines()))
        return fake.send(target, load)

    made.send = send
    command.measure(made, TWO[:1], time.monotonic() + 600)
    # the machine, start and memory are there at the warm-up; then each load
    assert lengths == [3, 3, 4, 5, 6, 7, 8]


def test_a_last_line_that_was_cut_is_dropped_and_the_rest_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Record(path, MACHINE).add("step", step="imports", outcome=DONE, why="")
    path.write_text(path.read_text() + '{"kind": "load", "st')
    again = Record(path, MACHINE)
    assert again.is_done("imports")
    again.add("step", step="next", outcome=DONE, why="")
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == ["machine", "step", "step"]


def test_rows_of_two_machines_do_not_mix(tmp_path: Path) -> None:
    Record(tmp_path / "rows.jsonl", MACHINE)
    with pytest.raises(
        SetupError, match="measured with card 'NVIDIA H100 80GB HBM3', and here it is 'NVIDIA L4'; name"
    ):
        Record(tmp_path / "rows.jsonl", {**MACHINE, "card": "NVIDIA L4"})


def test_a_file_that_is_no_record_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "rows.jsonl"
    other.write_text("my notes\n")
    with pytest.raises(SetupError, match="is not a record of this bench"):
        Record(other, MACHINE)
    assert other.read_text() == "my notes\n"


def test_a_start_that_hangs_is_ended_in_time_and_its_server_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "END_S", 0.5)
    monkeypatch.setattr(command, "SMALL_START_S", 0.1)
    fake = Servers(seconds=60)
    made = bench(tmp_path, fake)
    command.measure(made, TWO, time.monotonic() + 1.0)
    assert fake.started == fake.ended == ["vllm serve"]
    assert [(row["step"], row["outcome"]) for row in made.record.of("step")] == [
        ("vllm serve, uni, caches empty", "cut"),
        ("modelfleet, uni, caches empty", "not begun"),
    ]


def test_a_step_is_not_begun_when_less_is_left_than_such_a_start_took(tmp_path: Path) -> None:
    fake = Servers()
    made = bench(tmp_path, fake)
    made.record.add("start", step="vllm serve, uni, caches empty", seconds=119.5, parts={})
    command.measure(made, TWO, time.monotonic() + 100)
    assert fake.started == []
    assert made.record.of("step")[-1]["why"].endswith("s are left, and it takes 120 s or more")


def test_a_server_that_does_not_start_costs_its_own_rows_only(tmp_path: Path) -> None:
    fake = Servers(fails="vllm serve")
    made = bench(tmp_path, fake)
    command.measure(made, TWO, time.monotonic() + 600)
    assert [row["outcome"] for row in made.record.of("step")] == ["failed", DONE]
    text = table(made.record)
    assert "failed: vllm serve ended with exit code 1: CUDA out of memory" in text


def test_the_table_shows_starts_memory_against_the_plan_and_ratios(tmp_path: Path) -> None:
    made = bench(tmp_path, Servers())
    command.measure(made, steps(1, pretended=False)[1:], time.monotonic() + 600)
    text = table(made.record)
    assert "66.9  Ray's worker 2.2, weights 0.1, engine 19.4, vLLM: load 3.1, vLLM: compile 24.6" in text
    assert re.search(r"weights GiB 15\.00 / 14\.9\d; KV GiB 54\.02 / \d\d\.\d\d; KV tokens 442,560 / 4\d\d,\d{3}", text)
    assert re.search(r"modelfleet, replica's port +97\.0 +x0\.97 +20\.0 +30\.0 +0\.00 +0", text)
    assert "own route" not in text, "a card's time goes to the port and /v1"
    assert re.search(r"modelfleet, uni, caches sealed +66\.9 ", text)
    assert "left out: this machine has 1 card" in text and "failed" not in text.partition("not measured")[2]


SEALED = [Step("modelfleet"), Step("modelfleet", caches="sealed", loads=False)]


def test_sealed_caches_come_from_a_seal_of_what_an_earlier_step_compiled_and_into_the_same_folder(
    tmp_path: Path,
) -> None:
    """The replica's own `take` reads what the warm-up's own `write` wrote, through boto3 and a server on a port."""
    fake = Servers()
    made = bench(tmp_path, fake)
    command.measure(made, SEALED, time.monotonic() + 600)
    assert made.record.is_done("modelfleet, uni, caches sealed"), table(made.record)
    root = tmp_path / "work" / "caches" / "modelfleet-uni-1"
    assert (fake.roots, fake.taken) == ([(root, False)], [True]), fake.said
    kernel = root / "torch_compile_cache" / "kernel.so"
    assert fake.cached == {"torch_compile_cache/kernel.so": f"made for {kernel}"}, "files name others by their path"
    assert files_of(root) == [kernel], "the caches are as the earlier step left them, for a run that goes on"


def test_a_run_that_was_killed_while_it_sealed_finds_its_filled_caches_again(tmp_path: Path) -> None:
    fake = Servers()
    made = bench(tmp_path, fake)
    command.measure(made, SEALED[:1], time.monotonic() + 600)
    root = tmp_path / "work" / "caches" / "modelfleet-uni-1"
    root.rename(root.with_name(f"{root.name}.filled"))
    root.mkdir()
    (root / "half-taken").touch()
    command.measure(made, SEALED, time.monotonic() + 600)
    assert list(fake.cached) == ["torch_compile_cache/kernel.so"]


def test_without_filled_caches_the_step_says_what_is_missing_and_the_next_runs(tmp_path: Path) -> None:
    fake = Servers()
    made = bench(tmp_path, fake)
    command.measure(made, [SEALED[1], *TWO], time.monotonic() + 600)
    failed, *others = made.record.of("step")
    assert failed["outcome"] == "failed" and "the step with filled caches makes it" in failed["why"]
    assert [row["outcome"] for row in others] == [DONE, DONE]


def test_a_replica_is_deployed_with_its_seal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bench deploys is read by the application's own arguments."""
    sent: list[dict[str, Any]] = []

    @contextmanager
    def ray(*_: object) -> Iterator[tuple[Any, Path]]:
        yield None, tmp_path

    def deploy(_: Ports, applications: list[dict[str, Any]]) -> None:
        sent.extend(applications)
        raise RuntimeError("far enough")

    monkeypatch.setattr(servers, "ray", ray)
    monkeypatch.setattr(servers, "deploy", deploy)
    model = bench(tmp_path, Servers())._model(Step("modelfleet"))
    for seal in (None, "s3://seals/modelfleet-uni-1"):
        variant = servers.Variant("modelfleet", "fleet", seal=seal)
        with pytest.raises(RuntimeError, match="far enough"), servers.serve(variant, model, Ports(), tmp_path):
            pass
        assert AppArgs.model_validate(sent[-1]["args"]).weights.seal == seal


def test_a_pretended_run_says_so_at_the_top_and_runs_no_ray_executor(tmp_path: Path) -> None:
    record = Record(tmp_path / "rows.jsonl", {**MACHINE, "pretended": True})
    assert table(record).splitlines()[1].startswith("PRETENDED: there is no card")
    ray = [one for one in steps(1, pretended=True) if one.executor == "ray"]
    assert ray and all(one.left_out for one in ray)


def test_two_cards_run_mp_and_ray_beside_vllm_serve() -> None:
    here = [one.name for one in steps(2, pretended=False) if one.cards == 2 and not one.left_out]
    assert here == [
        "vllm serve, mp, 2 cards, caches empty",
        "modelfleet, mp, 2 cards, caches empty",
        "modelfleet, ray, 2 cards, caches empty",
    ]


def test_filled_caches_are_those_that_an_earlier_step_made_and_no_others() -> None:
    made = steps(2, pretended=False)
    for number, step in enumerate(made):
        if step.caches == "filled":
            assert any(one.cache == step.cache and one.caches == "empty" for one in made[:number]), step.name
    empty = [one.cache for one in made if one.caches == "empty" and one.server != "imports"]
    assert len(set(empty)) == len(empty), "two steps with empty caches share a folder"


def test_both_executors_are_asked_for_as_a_model_file_would(tmp_path: Path) -> None:
    made = bench(tmp_path, Servers())
    uni, ray = (ModelConfig.model_validate(made._model(Step("modelfleet", one))) for one in ("uni", "ray"))
    assert "distributed_executor_backend" not in uni.engine_config.engine_kwargs
    assert ray.engine_config.engine_kwargs["distributed_executor_backend"] == "ray"
    assert uni.engine_config.engine_kwargs["max_num_batched_tokens"] == 8192, "the card's own default"


def test_what_is_planned_is_what_the_fit_check_says() -> None:
    model = ModelConfig.model_validate(
        {
            "engine_config": {
                "model_id": "bench/llama",
                "max_total_tokens": 8192,
                "engine_kwargs": {"gpu_memory_utilization": 0.9, "max_num_seqs": 256, "max_num_batched_tokens": 8192},
            },
            "scaling_config": {"num_workers": 1},
        }
    )
    found = planned(model, facts_from_config(LLAMA_8B, "test", default_catalog()), H100.accelerator)
    assert found["weights_gib"] == pytest.approx(15.0, rel=0.01)
    assert found["kv_tokens"] == pytest.approx(442_560, rel=0.02)


def test_figures_come_from_vllms_own_lines() -> None:
    assert engine_log.engine_facts(LOG) == {
        "weights_gib": 15.0, "load_s": 3.058807, "compile_s": 24.55, "kv_gib": 54.02, "kv_tokens": 442560.0,
        "graphs_gib": 0.3, "graphs_s": 6.0, "init_s": 64.88,
    }  # fmt: skip


def test_the_99th_percentile_is_exceeded_by_one_in_a_hundred() -> None:
    assert p99(range(1, 101)) == 99
    assert p99([5.0]) == 5.0
    assert p99([3.0, 1.0, 2.0]) == 3.0
