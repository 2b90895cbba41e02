"""Runs one step of `make gpu-bench` and writes its rows: start, memory, loads."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelfleet.infra.local.runtime import QUIET_RAY, serve_environment
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.fit import gpu_memory, memory_in, setting_of
from modelfleet.infra.planning.host_memory import with_host_memory
from modelfleet.infra.planning.nodes import MIB
from modelfleet.serving import engine_log
from modelfleet.serving.config.accelerators import Accelerator
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.seal import Machine, cache_environment, this_machine
from tools.bench import processes, servers
from tools.bench.gpu import deadline
from tools.bench.gpu.card import PRETENDED, Cards, used_mib
from tools.bench.gpu.record import Record
from tools.bench.gpu.sealing import Seal, sealed
from tools.bench.gpu.steps import Step
from tools.bench.load import Load, Target, run

Serve = Callable[[servers.Variant, dict[str, Any], servers.Ports, Path], AbstractContextManager[servers.Running]]

CONCURRENCY = (1, 8, 64)
#: Requests of a load by its concurrency: at least four waves, and a second or two on a card.
REQUESTS = {1: 20, 8: 64, 64: 256}
#: A card's memory is free again some time after the process that held it.
FREE_S = 20.0
IMPORTS = "import vllm.v1.engine.async_llm, vllm.entrypoints.launchers.app, vllm.v1.engine.core, ray.serve"


@dataclass
class Bench:
    """One bench: its cards, the model's folder and facts, where the rows go, and where compilers keep their caches."""

    cards: Cards
    folder: Path
    facts: ModelFacts | None
    record: Record
    work: Path
    rounds: int = 2
    ports: servers.Ports = field(default_factory=servers.Ports)
    serve: Serve = servers.serve
    send: Callable[[Target, Load], Any] = run
    machine: Callable[..., Machine] = this_machine

    @property
    def pretended(self) -> bool:
        """Whether the engine runs on the CPU because there is no card."""
        return self.cards is PRETENDED

    def do(self, step: Step) -> None:
        """Runs a step to its end; raises what the server raises when it does not start."""
        if step.server == "imports":
            self._imports(step)
            return
        if step.caches == "empty":  # a run of it that was cut has filled them
            shutil.rmtree(self.caches_of(step), ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="gpu-bench-") as logs:
            before, model = self._memory_at_rest(), self._model(step)
            with (
                self._seal(step) as seal,
                self.serve(self._variant(step, seal), model, self.ports, Path(logs)) as running,
            ):
                try:
                    self._rows(step, running, before)
                finally:
                    deadline.disarm()

    def _rows(self, step: Step, running: servers.Running, before: Sequence[int]) -> None:
        said = engine_log.engine_facts(engine_log.text_of(running.logs))
        parts = {
            **engine_log.replica_parts(running.start),
            **{f"vLLM: {name[:-2]}": seconds for name, seconds in said.items() if name.endswith("_s")},
        }
        self.record.add("start", step=step.name, seconds=round(running.ready_s, 1), parts=parts)
        self._memory(step, said, before)
        if step.loads:
            self._loads(step, running)

    def _imports(self, step: Step) -> None:
        """What is imported by a replica and its engine, twice: the first run finds no bytecode and writes it."""
        environment = {**os.environ, **self._environment(step), "PYTHONPATH": _python_path()}
        shutil.rmtree(environment["PYTHONPYCACHEPREFIX"], ignore_errors=True)
        for found in ("no bytecode", "bytecode"):
            begun = time.monotonic()
            subprocess.run([sys.executable, "-c", IMPORTS], env=environment, check=True, capture_output=True)
            self.record.add("start", step=f"imports, {found}", seconds=round(time.monotonic() - begun, 1), parts={})

    def _seal(self, step: Step) -> AbstractContextManager[Seal | None]:
        """The seal of the caches that earlier steps filled; None for steps that do without."""
        if step.caches != "sealed":
            return nullcontext()
        machine = self.machine(gpus=not self.pretended)
        model_id = self._model(step)["engine_config"]["model_id"]
        return sealed(self.work / "caches" / step.cache, self.work / "store", self.ports.store, model_id, machine)

    def _variant(self, step: Step, seal: Seal | None = None) -> servers.Variant:
        environment = self._environment(step)
        if step.server == "vllm serve":
            machine = servers.Machine(gpus=0 if self.pretended else step.cards)
            return servers.Variant(step.server, "vllm", {**environment, "PYTHONPATH": _python_path()}, machine=machine)
        # Ray's own port stays closed: replicas listen themselves, as in both targets.
        ray = {name: value for name, value in {**serve_environment(0), **QUIET_RAY}.items() if "_PORT" not in name}
        machine = servers.Machine(
            max(4, os.cpu_count() or 4),
            0 if self.pretended else step.cards,
            {} if self.pretended else {f"accelerator_type:{self.cards.accelerator.name}": 1},
        )
        own = {**ray, **environment, "PYTHONPATH": _python_path()}
        if seal is not None:
            own |= seal.environment
        uri = seal.uri if seal is not None else None
        return servers.Variant(step.server, "fleet", own, machine=machine, local_head=True, seal=uri)

    def caches_of(self, step: Step) -> Path:
        """Where the compilers of the step's server keep what they make."""
        return self.work / "caches" / step.cache

    def _environment(self, step: Step) -> dict[str, str]:
        """Where compilers keep what they make, below a folder of the step's own, and where Python keeps bytecode."""
        bytecode = self.work / ("bytecode" if step.bytecode else "no-bytecode")
        return {
            **cache_environment(self.caches_of(step)),
            "PYTHONPYCACHEPREFIX": str(bytecode),
            "PYTHONDONTWRITEBYTECODE": "" if step.bytecode else "1",
        }

    def _model(self, step: Step) -> dict[str, Any]:
        """The model file of the step: what the plan would write for this card."""
        card = self.cards.accelerator
        kwargs: dict[str, Any] = {"max_num_seqs": card.sequences, "max_num_batched_tokens": card.batched_tokens}
        if self.pretended:
            kwargs = {"dtype": "float32", "max_num_seqs": 64}
        if not any(self.folder.glob("*.safetensors")):
            kwargs["load_format"] = "dummy"
        if step.executor == "ray":
            kwargs["distributed_executor_backend"] = "ray"
        own = {} if self.pretended else {"resources_per_worker": {f"accelerator_type:{card.name}": 0.001}}
        model = ModelConfig.model_validate(
            {
                "deployment_config": {"num_replicas": 1, "max_ongoing_requests": 256},
                "engine_config": {
                    "model_id": f"bench/{self.folder.name}",
                    "hf_model_id": str(self.folder),
                    "max_total_tokens": 2048,
                    "engine_kwargs": kwargs,
                },
                "scaling_config": {
                    "num_workers": step.cards,
                    "num_gpus_per_worker": 0 if self.pretended else 1,
                    "num_cpus_per_worker": 1,
                    **own,
                },
            }
        )
        return with_host_memory(model, self.facts, reserve=False).model_dump(mode="json", exclude_unset=True)

    def _memory_at_rest(self) -> list[int]:
        """MiB on each card before the start, once the server before it has let go."""
        if self.pretended:
            return []
        until, least = time.monotonic() + FREE_S, used_mib()
        while time.monotonic() < until and max(least) > 1024:
            time.sleep(1)
            least = used_mib()
        return least

    def _memory(self, step: Step, said: dict[str, float], before: Sequence[int]) -> None:
        used = [] if self.pretended else [now - then for now, then in zip(used_mib(), before, strict=True)]
        found = {name: value for name, value in said.items() if not name.endswith("_s")}
        self.record.add("memory", step=step.name, used_mib=used, planned=self._planned(step), **found)

    def _planned(self, step: Step) -> dict[str, float]:
        """What the plan's arithmetic says of the same model on the same card; empty without a card or facts."""
        if self.facts is None or self.pretended:
            return {}
        return planned(ModelConfig.model_validate(self._model(step)), self.facts, self.cards.accelerator)

    def _loads(self, step: Step, running: servers.Running) -> None:
        """Every load on every target, in random order; those that an earlier run of the step wrote are not repeated."""
        targets = [one for one in running.targets if "own route" not in one.name]
        for target in targets:
            self.send(target, Load(2 * max(CONCURRENCY), max(CONCURRENCY), True))
        for number in range(self.rounds):
            loads = [(t, c, s) for t in targets for c in CONCURRENCY for s in (False, True)]
            for target, concurrency, stream in random.sample(loads, len(loads)):
                key = {"target": target.name, "concurrency": concurrency, "stream": stream, "round": number}
                if any(key.items() <= row.items() for row in self.record.of("load", step.name)):
                    continue
                before = running.tree.seconds()
                outcome = self.send(target, Load(REQUESTS[concurrency], concurrency, stream))
                spent = processes.difference(running.tree.seconds(), before)
                around = sum(seconds for kind, seconds in spent.items() if kind in processes.AROUND)
                self.record.add(
                    "load",
                    step=step.name,
                    **key,
                    per_second=round(outcome.per_second, 2),
                    first_ms=round(1000 * outcome.first_s, 2),
                    first_p99_ms=round(1000 * outcome.first_p99_s, 2),
                    cpu_ms=round(1000 * around / REQUESTS[concurrency], 3),
                    failed=outcome.failed,
                )


def planned(model: ModelConfig, facts: ModelFacts, accelerator: Accelerator) -> dict[str, float]:
    """GiB of weights and KV cache and tokens of the cache on one card, from the same functions as the plan."""
    setting = setting_of(model, facts, accelerator)
    memory, found = memory_in(facts, setting), gpu_memory(facts, setting)
    return {
        "weights_gib": round(found.weights_mib / 1024, 2),
        "kv_gib": round(found.kv_cache_mib / 1024, 2),
        "kv_tokens": memory.pool.tokens(int(found.kv_cache_mib * MIB), memory.demand),
    }


def _python_path() -> str:
    """The checkout, then what was on the path: a machine without a network has its packages there."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(servers.ROOT), *([given] if given else [])])
