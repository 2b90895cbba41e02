"""`python -m tools.bench` (`make bench`): compares modelfleet with `vllm serve` under equal conditions, in one run.

Equal are the model, engine arguments, niceness, one OMP thread and no access log. The servers take turns: one runs at a
time, and the order turns round after each restart (a b, b a, …), so that a machine that gets slower favours none. With
`--together` all of them run, and their loads take turns in one minute: then an idle Ray costs each of them as much, and
what is left is the way of a request. Every number has its spread; on a shared machine only ratios of neighbours and CPU
time per request say much.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from modelfleet.infra.local.runtime import QUIET_RAY, serve_environment
from tools.bench import makeup, models, processes, report, servers
from tools.bench.load import Load, Target, run

#: How the local target runs Ray Serve, on the bench's own ports.
FAST = {name: value for name, value in {**serve_environment(0), **QUIET_RAY}.items() if "_PORT" not in name}
LOUD = {name: value for name, value in FAST.items() if name not in QUIET_RAY}
#: The environment of KubeRay's sample ray-service.high-throughput-llm.yaml (commit d83e396), for head and workers.
HIGH_THROUGHPUT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
    "VLLM_USE_RAY_V2_EXECUTOR_BACKEND": "1",
}
ECHO = "tools.bench.echo:build"
VARIANTS = {
    "vllm": servers.Variant("vllm serve", "vllm"),
    "fleet": servers.Variant("modelfleet", "fleet", FAST, local_head=True),
    "loud": servers.Variant("modelfleet on Ray's intervals", "fleet", LOUD, local_head=True),
    "serve-defaults": servers.Variant("Ray Serve's defaults", "fleet"),
    "ha": servers.Variant("Ray Serve's HAProxy", "fleet", {"RAY_SERVE_ENABLE_HA_PROXY": "1"}),
    "vllm-haproxy": servers.Variant("vllm serve behind HAProxy", "vllm-haproxy"),
    "ray.serve.llm": servers.Variant("ray.serve.llm", "ray.serve.llm"),
    "ray-high-throughput": servers.Variant("Ray's high-throughput recipe", "ray.serve.llm", HIGH_THROUGHPUT),
    "echo-alone": servers.Variant("uvicorn alone", "uvicorn"),
    "echo-tables": servers.Variant("gateway", "tables"),
    "echo-fleet": servers.Variant("modelfleet", "fleet", FAST, ECHO, local_head=True),
    "echo-loud": servers.Variant("modelfleet on Ray's intervals", "fleet", LOUD, ECHO, local_head=True),
    "echo-serve-defaults": servers.Variant("Ray Serve's defaults", "fleet", {}, ECHO),
    "echo-ha": servers.Variant("Ray Serve's HAProxy", "fleet", {"RAY_SERVE_ENABLE_HA_PROXY": "1"}, ECHO),
}
BASELINES = ("vllm", "vllm-haproxy", "echo-alone")
#: Ports and ports of Ray of one variant: the next one's begin after them, where several run at a time.
PORTS_EACH, GCS_EACH = 60, 5
#: Seconds in which a server without requests is watched.
IDLE_S = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 2 if a variant did not start."""
    parser = _options()
    options = parser.parse_args(arguments)
    # SIGTERM (a time limit) must not leave its servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Not `choices`: before Python 3.12, argparse checks the default, an empty list, against them and fails.
    options.variants = options.variants or ["vllm", "fleet"]
    variants = dict(VARIANTS)
    if options.ray_llm_packages:
        path = os.pathsep.join([str(servers.ROOT), str(options.ray_llm_packages.resolve())])
        for name in ("ray.serve.llm", "ray-high-throughput"):
            with_path = {**variants[name].environment, "PYTHONPATH": path}
            variants[name] = replace(variants[name], environment=with_path)
    if unknown := sorted(set(options.variants) - set(VARIANTS)):
        parser.error(f"unknown variant: {', '.join(unknown)}; allowed: {', '.join(VARIANTS)}")
    if options.makeup:
        print(makeup.table(makeup.measure(options.makeup)))
        return 0
    print(makeup.HINT, file=sys.stderr)
    samples: list[report.Sample] = []
    idle: list[report.Idle] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for restart in range(options.restarts):
            for names in turns(options.variants, restart, together=options.together):
                try:
                    _measure([variants[name] for name in names], restart, options, Path(folder), samples, idle)
                except RuntimeError as problem:
                    print(f"{', '.join(names)}: {problem}", file=sys.stderr)
                    if options.stop_on_failure:
                        return 2
    found = report.rows(samples)
    baseline = next((VARIANTS[name].name for name in BASELINES if name in options.variants), "")
    how = "all at a time" if options.together else "one at a time, in turns"
    what = "a stand-in engine (tools/bench/echo.py)" if _is_echo(options.variants) else f"the model {options.model}"
    print(
        f"\nMeasured with {what}, {os.cpu_count()} CPUs, load {os.getloadavg()[1]:.0f}, {options.restarts} restarts, "
        f"{how}.\n"
    )
    print(report.table(found, baseline, report.paired(samples, baseline)))
    print(report.idle_table(idle))
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(one) for one in samples], indent=1), encoding="utf-8")
    return 0 if samples or idle else 2


def turns(names: Sequence[str], restart: int, *, together: bool) -> list[list[str]]:
    """Which variants run at a time in one restart, in order; every second restart goes backwards."""
    order = list(names) if restart % 2 == 0 else list(reversed(names))
    return [order] if together else [[name] for name in order]


@dataclass(frozen=True)
class Up:
    """One running server, and one of the addresses that lead to it."""

    running: servers.Running
    target: Target


def _measure(
    chosen: Sequence[servers.Variant],
    restart: int,
    options: argparse.Namespace,
    folder: Path,
    samples: list[report.Sample],
    idle: list[report.Idle],
) -> None:
    """Starts the variants, watches them idle, and runs all loads on all their targets, in random order each round.

    In a round every target gets a load before any target gets the next one: those neighbours are compared.
    """
    model = models.model_file(options.model)
    with ExitStack() as stack:
        up: list[Up] = []
        for number, variant in enumerate(chosen):
            print(f"[{restart + 1}/{options.restarts}] starting {variant.name}", file=sys.stderr)
            ports = servers.Ports(options.port + number * PORTS_EACH, options.gcs_port + number * GCS_EACH)
            (own := folder / str(number)).mkdir(exist_ok=True)
            running = stack.enter_context(servers.serve(variant, model, ports, own))
            print(f"    first answer after {running.ready_s:.1f} s; {running.start}", file=sys.stderr)
            up += [Up(running, target) for target in running.targets]
            idle.append(_idle(variant.name, running.tree))
        for one in up if options.rounds else ():
            run(one.target, Load(2 * max(options.concurrency), max(options.concurrency), True))
        for number in range(options.rounds):
            loads = [(c, s) for c in options.concurrency for s in (False, True)]
            for concurrency, stream in random.sample(loads, len(loads)):
                for one in random.sample(up, len(up)):
                    load = Load(max(options.requests, 3 * concurrency), concurrency, stream)
                    samples.append(_sample(one, load, restart, number))
                    print(f"    {samples[-1].line()}", file=sys.stderr)


def _idle(name: str, tree: processes.Tree) -> report.Idle:
    """What a server costs that nobody asks anything: CPU ms a second by kind of process."""
    before, begun = tree.seconds(), time.monotonic()
    time.sleep(IDLE_S)
    spent, took = processes.difference(tree.seconds(), before), time.monotonic() - begun
    return report.Idle(name, {kind: 1000 * seconds / took for kind, seconds in spent.items()})


def _sample(up: Up, load: Load, restart: int, number: int) -> report.Sample:
    before = up.running.tree.seconds()
    outcome = run(up.target, load)
    spent = processes.difference(up.running.tree.seconds(), before)
    cpu_ms = {kind: 1000 * seconds / load.requests for kind, seconds in spent.items()}
    return report.Sample(up.target.name, load.stream, load.concurrency, restart, outcome, cpu_ms, number)


def _is_echo(variants: Sequence[str]) -> bool:
    return any(name.startswith("echo") for name in variants)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description="Compares modelfleet with vllm serve.")
    parser.add_argument(
        "variants", nargs="*", metavar="VARIANT", help=f"what to compare: {', '.join(VARIANTS)}; default: vllm fleet"
    )
    parser.add_argument(
        "--model",
        choices=["tiny", "smollm"],
        default="tiny",
        help="tiny: random weights, shows the overhead at its largest",
    )
    parser.add_argument("--restarts", type=int, default=3, help="starts of each variant")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of all loads after each start; 0: only watch them idle"
    )
    parser.add_argument("--requests", type=int, default=100, help="requests per load")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64], help="requests at a time")
    parser.add_argument("--port", type=int, default=8750, help="first of 60 ports of each variant")
    parser.add_argument("--gcs-port", type=int, default=6700, help="first of 5 ports of each Ray")
    parser.add_argument(
        "--makeup", metavar="STACK", help="only run `modelfleet up` on the stack and print its time by step"
    )
    parser.add_argument(
        "--ray-llm-packages",
        type=Path,
        help="folder with the extra imports of ray.serve.llm (pip install --no-deps --target FOLDER pyarrow)",
    )
    parser.add_argument("--together", action="store_true", help="run all variants at a time; their loads take turns")
    parser.add_argument("--json", help="write every sample to this file")
    parser.add_argument("--stop-on-failure", action="store_true", help="stop at the first variant that does not start")
    return parser


if __name__ == "__main__":
    sys.exit(main())
