"""`python -m tools.bench` (`make bench`): compares modelfleet with `vllm serve` under equal conditions, in one run.

Equal are the model, engine arguments, niceness, one OMP thread and no access log. Only one server runs at a time, and
restarts are in random order. Every number has its spread; on a shared machine only CPU time per request says much.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from modelfleet.infra.local.runtime import serve_environment
from tools.bench import makeup, models, processes, report, servers
from tools.bench.load import Load, Target, run

#: How the local target runs Ray Serve, on the bench's own ports.
FAST = {name: value for name, value in serve_environment(0).items() if "_PORT" not in name}
ECHO = "tools.bench.echo:build"
VARIANTS = {
    "vllm": servers.Variant("vllm serve", "vllm"),
    "fleet": servers.Variant("modelfleet", "fleet", FAST),
    "serve-defaults": servers.Variant("Ray Serve's defaults", "fleet"),
    "ha": servers.Variant("Ray Serve's HAProxy", "fleet", {"RAY_SERVE_ENABLE_HA_PROXY": "1"}),
    "ray.serve.llm": servers.Variant("ray.serve.llm", "ray.serve.llm"),
    "echo-alone": servers.Variant("uvicorn alone", "uvicorn"),
    "echo-fleet": servers.Variant("modelfleet", "fleet", FAST, ECHO),
    "echo-serve-defaults": servers.Variant("Ray Serve's defaults", "fleet", {}, ECHO),
    "echo-ha": servers.Variant("Ray Serve's HAProxy", "fleet", {"RAY_SERVE_ENABLE_HA_PROXY": "1"}, ECHO),
}
BASELINES = ("vllm", "echo-alone")


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
        variants["ray.serve.llm"] = replace(variants["ray.serve.llm"], environment={"PYTHONPATH": path})
    if unknown := sorted(set(options.variants) - set(VARIANTS)):
        parser.error(f"unknown variant: {', '.join(unknown)}; allowed: {', '.join(VARIANTS)}")
    if options.makeup:
        print(makeup.table(makeup.measure(options.makeup)))
        return 0
    print(makeup.HINT, file=sys.stderr)
    samples: list[report.Sample] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for restart in range(options.restarts):
            for name in random.sample(options.variants, len(options.variants)):
                try:
                    samples += _measure(variants[name], restart, options, Path(folder))
                except RuntimeError as problem:
                    print(f"{name}: {problem}", file=sys.stderr)
                    if options.stop_on_failure:
                        return 2
    found = report.rows(samples)
    baseline = next((VARIANTS[name].name for name in BASELINES if name in options.variants), "")
    what = "a stand-in engine (tools/bench/echo.py)" if _is_echo(options.variants) else f"the model {options.model}"
    print(
        f"\nMeasured with {what}, {os.cpu_count()} CPUs, load {os.getloadavg()[1]:.0f}, {options.restarts} restarts.\n"
    )
    print(report.table(found, baseline))
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(one) for one in samples], indent=1), encoding="utf-8")
    return 0 if samples else 2


def _measure(variant: servers.Variant, restart: int, options: argparse.Namespace, folder: Path) -> list[report.Sample]:
    """Run all loads on all targets of one variant, in random order, after one start."""
    model = models.model_file(options.model)
    print(f"[{restart + 1}/{options.restarts}] starting {variant.name}", file=sys.stderr)
    samples = []
    with servers.serve(variant, model, servers.Ports(options.port, options.gcs_port), folder) as running:
        print(f"    first answer after {running.ready_s:.1f} s; {running.start}", file=sys.stderr)
        for target in running.targets:
            run(target, Load(2 * max(options.concurrency), max(options.concurrency), True))
        for _ in range(options.rounds):
            loads = [(t, c, s) for t in running.targets for c in options.concurrency for s in (False, True)]
            for target, concurrency, stream in random.sample(loads, len(loads)):
                load = Load(max(options.requests, 3 * concurrency), concurrency, stream)
                samples.append(_sample(target, load, restart, running.tree))
                print(f"    {samples[-1].line()}", file=sys.stderr)
    return samples


def _sample(target: Target, load: Load, restart: int, tree: processes.Tree) -> report.Sample:
    before = tree.seconds()
    outcome = run(target, load)
    spent = processes.difference(tree.seconds(), before)
    cpu_ms = {kind: 1000 * seconds / load.requests for kind, seconds in spent.items()}
    return report.Sample(target.name, load.stream, load.concurrency, restart, outcome, cpu_ms)


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
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all loads after each start")
    parser.add_argument("--requests", type=int, default=100, help="requests per load")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64], help="requests at a time")
    parser.add_argument("--port", type=int, default=8750, help="first of 60 ports")
    parser.add_argument("--gcs-port", type=int, default=6700, help="first of 5 ports of Ray")
    parser.add_argument(
        "--makeup", metavar="STACK", help="only run `modelfleet up` on the stack and print its time by step"
    )
    parser.add_argument(
        "--ray-llm-packages",
        type=Path,
        help="folder with the extra imports of ray.serve.llm (pip install --no-deps --target FOLDER pyarrow)",
    )
    parser.add_argument("--json", help="write every sample to this file")
    parser.add_argument("--stop-on-failure", action="store_true", help="stop at the first variant that does not start")
    return parser


if __name__ == "__main__":
    sys.exit(main())
