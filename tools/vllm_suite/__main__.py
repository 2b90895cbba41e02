"""vLLM's own API tests, first against `vllm serve`, then against modelfleet's `/v1` and the model's own route.

    python -m tools.vllm_suite                                        everything; an hour on two cores
    python -m tools.vllm_suite --module completion --keep /tmp/suite  modules whose name has that word
    python -m tools.vllm_suite --keep /tmp/suite --only /v1           one server; the others' results are in the folder

The servers run one after the other, with SmolLM2 on the CPU and the same engine arguments. It ends with 1 when a test
passes on `vllm serve` and not on modelfleet, and `hidden.csv` gives no reason for it.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelfleet.serving.config.errors import ModelfleetError
from modelfleet.serving.config.schema import slug_of
from modelfleet.serving.engine_args import DEFAULT_ENVIRONMENT
from tools.bench import servers
from tools.bench.__main__ import VARIANTS
from tools.bench.models import folder_of, model_file
from tools.progress import say
from tools.vllm_suite import compare, source

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: Arguments that vLLM's tests start most of their servers with.
FLAGS = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
TEST_TIMEOUT_S = 600
PLAIN, ROOT, OWN = "vllm serve", "/v1", "own route"
SERVERS = (PLAIN, ROOT, OWN)
#: Beside those of a benchmark that runs meanwhile.
PORTS = servers.Ports(first=8950, gcs=6750)
HIDDEN = Path(__file__).with_name("hidden.csv")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tests and prints the comparison; 1 where something is lost."""
    options = _options().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a time limit must not leave servers behind
    modules = [one for one in source.modules() if any(word in one for word in options.module or [""])]
    try:
        with _folder(options.keep) as folder:
            source.prepare(folder, MODEL_ID)
            for name in options.only or SERVERS:
                _run(name, folder, modules)
            return _report(folder)
    except ModelfleetError as error:
        say(str(error))
        return error.exit_code


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.vllm_suite", description="vLLM's own API tests.")
    parser.add_argument("--module", action="append", help="run the modules whose name has this word")
    parser.add_argument("--only", action="append", choices=SERVERS, help="ask this server only")
    parser.add_argument("--keep", type=Path, help="keep results and logs here; by default they go")
    return parser


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="vllm-suite-") as made:
        yield Path(made)


def served_model() -> dict[str, Any]:
    """The model file: SmolLM2 as the benchmarks have it, under its own name and with tools."""
    model = model_file("smollm")
    model["engine_config"]["model_id"] = MODEL_ID
    model["engine_config"]["engine_kwargs"] |= FLAGS
    return model


def _run(name: str, folder: Path, modules: Sequence[str]) -> None:
    """All tests against one server, which it starts and ends."""
    chosen = VARIANTS["vllm" if name == PLAIN else "fleet"]
    # The limits of a replica, which `vllm serve` takes from its environment.
    environment = {**DEFAULT_ENVIRONMENT, **chosen.environment}
    say(f"{name}: starting the server")
    logs = folder / f"log-{_file(name)}"
    logs.mkdir(exist_ok=True)
    with servers.serve(replace(chosen, environment=environment, others=0), served_model(), PORTS, logs) as up:
        base = next(target.base for target in up.targets if name == PLAIN or "gateway" in target.name)
        url = f"{base}/{slug_of(MODEL_ID)}" if name == OWN else base
        _pytest(url, folder, folder / f"{_file(name)}.jsonl", modules)


def _pytest(url: str, folder: Path, out: Path, modules: Sequence[str]) -> None:
    out.unlink(missing_ok=True)
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment = {
        **own,
        "SUITE_URL": url,
        "SUITE_MODEL": MODEL_ID,
        "SUITE_OUT": str(out),
        "HF_HOME": str(source.hub_cache(folder, MODEL_ID, folder_of("smollm"))),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, source.packages(), folder))),
    }
    command = [
        sys.executable, "-m", "pytest", "-p", "plugin", "-p", "pytest_asyncio", "-p", "no:cacheprovider",
        "-p", "no:schemathesis", "-o", "asyncio_mode=strict", "-o", "addopts=", "--rootdir", str(folder),
        "-c", os.devnull, "--timeout", str(TEST_TIMEOUT_S), "-q", "-rN", "--tb", "short",
        *(f"tests/{module}" for module in modules),
    ]  # fmt: skip
    subprocess.run(command, cwd=folder, env=environment, check=False)  # failed tests are in the results


def _report(folder: Path) -> int:
    found = {name: compare.read(_text(folder / f"{_file(name)}.jsonl")) for name in SERVERS}
    lost = 0
    for name in (ROOT, OWN):
        if not found[PLAIN] or not found[name]:
            continue
        result = compare.compared(found[PLAIN], found[name], hidden())
        print(f"\n{PLAIN} against {name}\n{result.table()}")
        _list("hidden on purpose", [one for one in result.lost if one.hidden], lambda one: one.hidden)
        _list("passed on vllm serve only", result.missing, lambda one: one.why)
        _list(f"passed on {name} only", result.gained, lambda one: one.why)
        lost += len(result.missing)
    return 1 if lost else 0


def _list(title: str, differences: Sequence[compare.Difference], said: Any) -> None:
    print(f"\n{title}: {len(differences)}")
    for one in differences:
        print(f"  {one.test}\n      {said(one)}")


def hidden() -> Mapping[str, str]:
    """Begins of tests' names, with the reason why what they ask for is shut."""
    with HIDDEN.open(encoding="utf-8", newline="") as table:
        return {row["test"]: row["why"] for row in csv.DictReader(table)}


def _file(name: str) -> str:
    return name.strip("/").replace(" ", "-")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
