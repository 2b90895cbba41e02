"""`modelfleet gpu check`: what vLLM really takes of this machine's card, beside what the plan says."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml

import modelfleet
from modelfleet.cli import output
from modelfleet.cli.plan_table import FittingTable
from modelfleet.infra.catalog import Measured
from modelfleet.infra.local.provider.last_start import of_last_start
from modelfleet.infra.local.provider.ray import ray_environment
from modelfleet.infra.names import local_folder
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.cards import chosen_cards, on_cards
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.fit import Setting, setting_of
from modelfleet.infra.planning.measured import (
    GIB_OFF,
    TOKENS_OFF,
    Line,
    Taken,
    Where,
    compared,
    measured_of,
    on_measured,
)
from modelfleet.infra.planning.plan import ModelPlan
from modelfleet.infra.reading.machine import this_machine
from modelfleet.infra.reading.measured import known_catalog, save_measured
from modelfleet.infra.reading.models import read_facts
from modelfleet.infra.reading.workspace import Workspace, plan_workspace, read_workspace
from modelfleet.serving.config.accelerators import CPU, resource_name
from modelfleet.serving.config.catalogs import engine_arguments as known_arguments
from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.errors import InputErrors, SetupError, errors_in
from modelfleet.serving.config.load import LoadedModel, load_models, model_of
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.engine_args import DEFAULT_ENVIRONMENT, engine_arguments
from modelfleet.serving.engine_log import engine_facts, start_parts
from modelfleet.serving.explain import sentence
from modelfleet.serving.versions import PINNED, PRETENDED_CARD

#: An engine argument that only a server's engine has (vLLM 0.32 `AsyncEngineArgs`): `LLM` refuses it.
SERVERS_OWN: Final = "enable_log_requests"
PROGRAM: Final = "modelfleet.serving.measure"
#: Seconds after which nothing more is timed, so that a small model is done within three minutes.
TIMED_S: Final = 150
#: A start whose log says nothing new for so long hangs: vLLM compiles and captures graphs without a line for minutes.
SILENCE_S: Final = 900
#: A card's memory is free again a moment after the process that had it; more than so many MiB beside before is left.
FREE_S, LEFT_MIB = 20.0, 64
#: vLLM's CPU build, in place of a card, gets so much cache: it is there for the way, not for the figures.
PRETENDED_CACHE_BYTES: Final = 512 * 2**20
PRETENDED: Final = (
    "PRETENDED: vLLM's CPU build ran in place of the card. Tokens for the same GiB of cache are held against the plan; "
    "memory of a card and times are not, and nothing is saved"
)


@dataclass(frozen=True)
class Asked:
    """The options of `gpu check`."""

    model: str | None = None
    save: bool = False
    weights: bool = False
    pretend: bool = False
    network: bool = True


@dataclass(frozen=True)
class Checked:
    """One model: the plan's figures beside the real ones, and the row that may be saved."""

    model: str
    lines: Sequence[Line]
    row: Measured | None
    untimed: str
    seconds: float


def run_gpu_check(stack: str, asked: Asked, *, as_json: bool = False) -> int:
    """Measure each model of the stack that is on a card; returns the exit code, 1 where the plan is off."""
    root = Path.cwd()
    if asked.save and asked.pretend:
        raise SetupError("--save: nothing that --pretend measures is a card's; leave one of them out")
    workspace = _only(read_workspace(root, stack), asked.model, root)
    plan = plan_workspace(workspace, root, network=asked.network, deploying=False)
    _require_a_free_card(plan, root, asked)
    output.show_findings(plan.notices)
    facts, _ = read_facts(workspace.models, root, workspace.stack, network=False, catalog=known_catalog(root))
    found = []
    models = [model for model in plan.models if model.accelerator != CPU]
    if not models:
        raise SetupError(f"stack {stack} has no model on a card; name one with --model")
    for number, model in enumerate(models, 1):
        output.say(f"[{number}/{len(models)}] {model.model_id} on {plan.cards.named if plan.cards else ''}")
        found.append(_checked(plan, model, facts.get(model.model_id), workspace, root, asked))
    rows = [one.row for one in found if one.row]
    if asked.save and rows:
        output.say(
            f"added {output.counted(len(rows), 'row')} to {_saved(rows, root)}; plans count with them from now on"
        )
    _show(found, asked, as_json=as_json)
    return 1 if any(line.off for one in found for line in one.lines) else 0


def _saved(rows: Sequence[Measured], root: Path) -> Path:
    try:
        return save_measured(rows, root)
    except OSError as fault:
        raise SetupError(f"--save: {fault}") from None


def _only(workspace: Workspace, name: str | None, root: Path) -> Workspace:
    """The workspace with the named model alone: one of the stack's, a model file, or an id with everything default."""
    if name is None:
        return workspace
    own = [one for one in workspace.models if name in (one.config.model_id, one.config.engine_config.weights_id)]
    if not own and (path := Path(name)).suffix == ".yaml":
        loading = load_models([path], root)
        if errors := errors_in(loading.findings):
            raise InputErrors(errors)
        own = list(loading.models)
    return dataclasses.replace(workspace, models=tuple(own or [_bare(name, workspace)]), findings=())


def _bare(name: str, workspace: Workspace) -> LoadedModel:
    """A model file of an id alone, on the stack's first card. Raises `SetupError` where the stack has none."""
    cards = [pool.accelerator for pool in workspace.stack.config.pools if pool.accelerator != CPU]
    if not cards:
        raise SetupError(f"stack {workspace.stack.name} has no pool of GPUs; name a stack that has one: --stack gpu")
    named = {resource_name(cards[0]): 0.001}
    data = {
        "deployment_config": {
            "autoscaling_config": {"min_replicas": 1, "max_replicas": 1},
            "ray_actor_options": {"num_cpus": 1, "resources": named},
        },
        "engine_config": {"model_id": name, "max_total_tokens": 8192},
        "scaling_config": {
            "num_workers": 1, "num_gpus_per_worker": 1, "num_cpus_per_worker": 1, "resources_per_worker": named,
        },
    }  # fmt: skip
    loaded, findings = model_of(parse_document(yaml.safe_dump(data, sort_keys=False).encode(), f"--model {name}"))
    if loaded is None or errors_in(findings):
        raise InputErrors(errors_in(findings))
    return loaded


def _require_a_free_card(plan: Plan, root: Path, asked: Asked) -> None:
    """Raises `SetupError` with the one thing to do where nothing can be measured here."""
    if plan.cards is None:
        raise SetupError(f"stack {plan.stack} serves on no card of this machine; name one that does: --stack gpu")
    wrong = list(plan.cards.missing)
    if plan.cards.pretended:
        wrong.append(f"{PRETENDED_CARD} is set, and a pretended card measures nothing")
    if wrong and not asked.pretend:
        raise SetupError("\n".join([*wrong, "to try the check itself on the CPU: --pretend"]))
    if of_last_start(local_folder(root, plan.stack)):
        raise SetupError(
            f"stack {plan.stack} runs and may have the card's memory; run: modelfleet down --stack {plan.stack}"
        )


def _checked(
    plan: Plan, model: ModelPlan, facts: ModelFacts | None, workspace: Workspace, root: Path, asked: Asked
) -> Checked:
    if facts is None:
        raise SetupError(f"nothing is known about {model.model_id}, so there is no plan to hold against the card")
    config = ModelConfig.model_validate(model.application.args["model"])
    machine = this_machine(workspace.stack, root)
    catalog = on_measured(on_cards(workspace.stack, machine.gpus, known_catalog(root)))
    setting = setting_of(config, facts, catalog.accelerators[config.accelerator])
    cards = chosen_cards(machine.gpus) if machine.gpus else ()
    before = [card.others_mib for card in cards]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="modelfleet-gpu-check-") as folder:
        question = {
            "arguments": _arguments(config, facts, Path(folder), asked),
            "seconds": TIMED_S,
            "timed": model.kind == "text",
        }
        answer, log = _ask(question, _environment(plan, asked), root, model.slug)
    if not asked.pretend:
        _require_as_before(workspace, root, before)
    taken = _taken(answer, log, setting, pretended=asked.pretend)
    where = Where(
        card=cards[0].name if cards else "",
        driver=machine.gpus.driver if machine.gpus else "",
        model=config.engine_config.weights_id,
        date=datetime.now(UTC).date().isoformat(),
        source=f"modelfleet gpu check, {'the weights' if asked.weights else 'random weights'}",
    )
    lines = compared(facts, setting, taken)
    row = measured_of(taken, facts, setting, where)
    return Checked(model.model_id, lines, row, str(answer.get("untimed") or ""), time.monotonic() - began)


def _arguments(config: ModelConfig, facts: ModelFacts, folder: Path, asked: Asked) -> dict[str, Any]:
    """The replica's engine arguments; with random weights, of a folder that has the model's config.json alone."""
    weights = config.engine_config.weights_id
    own = Path(weights).is_absolute()
    if not asked.weights and not own:
        (folder / "config.json").write_text(json.dumps(dict(facts.checkpoint.raw)), encoding="utf-8")
    arguments = engine_arguments(config, weights if asked.weights or own else str(folder))
    if asked.weights and config.engine_config.revision:
        arguments["revision"] = config.engine_config.revision
    if not asked.weights:
        arguments |= {"load_format": "dummy", "skip_tokenizer_init": True, "generation_config": "vllm"}
        for name in ("tokenizer", "chat_template", "override_generation_config"):
            arguments.pop(name, None)
    if asked.pretend:
        arguments |= {"kv_cache_memory_bytes": PRETENDED_CACHE_BYTES, "enforce_eager": True}
    return {name: value for name, value in arguments.items() if name in known_arguments() and name != SERVERS_OWN}


def _environment(plan: Plan, asked: Asked) -> dict[str, str]:
    """A replica's: the cards that the plan chose, and nothing of the user's that would change vLLM."""
    own = {**DEFAULT_ENVIRONMENT, **(dict(plan.cards.environment) if plan.cards else {}), "VLLM_LOGGING_LEVEL": "INFO"}
    if asked.pretend:
        own |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    # The same package as this command's, wherever it lies.
    return {**ray_environment(own), "PYTHONPATH": str(Path(modelfleet.__file__).parents[1])}


def _ask(
    question: Mapping[str, Any], environment: Mapping[str, str], root: Path, slug: str
) -> tuple[dict[str, Any], str]:
    """Runs the measuring program to its end; returns its answer and vLLM's log. Raises `SetupError` where it fails.

    Its processes are a group of their own, and all of them end with this call, however it ends.
    """
    path = root / ".modelfleet" / "gpu-check" / f"{slug}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as log, tempfile.TemporaryFile("w+") as asked, tempfile.TemporaryFile("w+") as answer:
        asked.write(json.dumps(question))
        asked.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", PROGRAM],
            stdin=asked, stdout=answer, stderr=log, env=dict(environment), start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, path, slug)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        answer.seek(0)
        text, said = path.read_text(encoding="utf-8", errors="replace"), answer.read()
    if process.returncode or not said.strip():
        raise SetupError(f"{sentence(slug, RuntimeError(_last(text)), text)} (its log: {path})")
    return json.loads(said), text


def _wait(process: subprocess.Popen[bytes], log: Path, slug: str) -> None:
    """Waits for the end of the program, and says the parts of the start as its log tells them."""
    shown, size, changed = "", 0, time.monotonic()
    with output.status(f"{slug}: starting vLLM"):
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
                return
            now, length = time.monotonic(), log.stat().st_size
            if length != size:
                size, changed = length, now
                parts = start_parts(log.read_text(encoding="utf-8", errors="replace"))
                if parts != shown:
                    shown = parts
                    output.say(f"{slug}: {parts}")
            if now - changed > SILENCE_S:
                raise SetupError(f"{slug}: vLLM said nothing new for {SILENCE_S} s and was ended (its log: {log})")


def _last(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"


def _require_as_before(workspace: Workspace, root: Path, before: Sequence[int]) -> None:
    """Raises `SetupError` where the card's memory is not free again."""
    until = time.monotonic() + FREE_S
    while True:
        gpus = this_machine(workspace.stack, root).gpus
        used = [card.others_mib for card in chosen_cards(gpus)] if gpus else []
        more = [now - then for now, then in zip(used, before, strict=False)]
        if max(more, default=0) <= LEFT_MIB:
            return
        if time.monotonic() > until:
            raise SetupError(
                f"the card has {max(more)} MiB more in use than before; see which process has it: nvidia-smi"
            )
        time.sleep(1)


def _taken(answer: Mapping[str, Any], log: str, setting: Setting, *, pretended: bool) -> Taken:
    """What the program and vLLM's log say together."""
    said = engine_facts(log)
    weights = said.get("weights_gib")
    consumed = said.get("consumed_gib")
    tokens = said.get("kv_tokens")
    return Taken(
        usable_gib=answer.get("usable_gib"),
        weights_gib=weights,
        non_torch_gib=round(consumed - weights, 2) if consumed is not None and weights is not None else None,
        peak_gib=said.get("peak_gib"),
        kv_gib=PRETENDED_CACHE_BYTES / 2**30 if pretended else said.get("kv_gib"),
        kv_tokens=int(tokens) if tokens is not None else None,
        graphs_gib=None if setting.eager else said.get("graphs_gib"),
        **{name: answer.get(name) for name in ("prefill_1024_ms", "token_ms_1", "token_ms_8", "token_ms_32")},
        pretended=pretended,
    )


def _show(found: Sequence[Checked], asked: Asked, *, as_json: bool) -> None:
    if as_json:
        output.show_json({"pretended": asked.pretend, "models": [_as_json(one) for one in found]})
        return
    if asked.pretend:
        output.say(PRETENDED, "bold yellow", stderr=False)
    for one in found:
        output.show(_table(one))
        if one.untimed:
            output.say(f"not timed: {one.untimed}", stderr=False)
    off = [f"{one.model}: {line.what} ({line.unit})" for one in found for line in one.lines if line.off]
    verdict = f"the plan is off for {', '.join(off)}" if off else "the plan holds"
    output.say(
        f"{verdict}: {TOKENS_OFF:.0%} of KV tokens and {GIB_OFF} GiB are allowed", "red" if off else "", stderr=False
    )
    if off and not (asked.save or asked.pretend):
        output.say("Plans count with the real figures after: modelfleet gpu check --save")


def _as_json(one: Checked) -> dict[str, Any]:
    lines = [
        {**dataclasses.asdict(line), "what": line.what.strip(), "difference": line.difference} for line in one.lines
    ]
    row = dataclasses.asdict(one.row) if one.row else None
    return {"model": one.model, "lines": lines, "row": row, "untimed": one.untimed, "seconds": round(one.seconds, 1)}


def _table(one: Checked) -> FittingTable:
    columns = [("", False), ("unit", False), ("ours", True), ("real", True), ("difference", True)]
    table = FittingTable(f"{one.model}, {one.seconds:.0f} s, vLLM {PINNED['vllm']}", columns)
    for line in one.lines:
        ours = _number(line.ours, line.unit)
        if line.low is not None and line.high is not None:
            ours += f" ({_number(line.low, line.unit)}–{_number(line.high, line.unit)})"
        cells = [line.what, line.unit, ours, _number(line.real, line.unit), _difference(line)]
        table.add_row(*cells, style="bold red" if line.off else "")
    return table


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if unit == "tokens" else f"{value:,.2f}"


def _difference(line: Line) -> str:
    if line.difference is None or line.ours is None:
        return "-"
    share = f" ({line.difference / line.ours:+.1%})" if line.ours else ""
    sign = "+" if line.difference > 0 else ""
    return f"{sign}{_number(line.difference, line.unit)}{share}"
