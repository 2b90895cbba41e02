"""Measures the AWS half: preview and up of 20 pools and 200 models on the emulated account, and where the time goes.

    python -m tools.bench.aws [--pools 20] [--models 200]

The same run measures an empty Python program with as many trivial resources (components, which have no provider). It
shows what the engine and the language host alone take. Gives wall time and, for the program, its own CPU time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelfleet.infra.local.ports import free_port
from tools.cloud.app import QUOTAS

ROOT = Path(__file__).resolve().parents[2]
PULUMI = Path(sys.prefix) / "bin" / "pulumi"
ACCOUNT = "123456789012"
REGION = "us-east-1"
TYPES = {"T4": "g4dn.xlarge", "L4": "g6.2xlarge", "A10G": "g5.2xlarge"}

#: Marks are (what, wall s, CPU s of the process); the last one is written once the engine has sent all its answers.
PROGRAM = """\
import atexit, json, os, time

marks = [("start", time.time(), time.process_time())]
mark = lambda what: marks.append((what, time.time(), time.process_time()))
atexit.register(lambda: (mark("engine"), open(os.environ["BENCH_MARKS"], "w").write(json.dumps(marks))))
from pathlib import Path
import pulumi
{imports}
mark("imports")
{program}
mark("program")
"""
FLEET = {
    "imports": "from modelfleet.infra.aws import AwsFleet\nfrom modelfleet.infra.planning import plan\n"
    "from modelfleet.infra.reading.workspace import read_workspace\n"
    "import pulumi_aws as aws\n"  # it loads a service on first use, which is also import time
    "aws.autoscaling.Tag, aws.cloudwatch.LogGroup, aws.ec2.Vpc, aws.eks.Cluster, aws.iam.Role, aws.s3.Bucket",
    "program": (
        'found = read_workspace(Path(os.environ["BENCH_ROOT"]), "bench")\n'
        'mark("files")\nplanned = plan(found.models, found.stack, code=found.code)\nmark("plan")\n'
        'AwsFleet("aws", planned)'
    ),
}
TRIVIAL = {
    "imports": "",
    "program": 'for i in range(int(os.environ["BENCH_COUNT"])):\n    pulumi.ComponentResource("a:b:C", f"r{i}")',
}


@dataclass(frozen=True)
class Result:
    """One command: wall seconds, resources, and the program's parts as name → (wall s, CPU s)."""

    command: str
    wall_s: float
    resources: int
    parts: Mapping[str, tuple[float, float]]


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=20)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as folder:
        results = measure(Path(folder), asked.pools, asked.models)
    if asked.json:
        print(json.dumps([vars(result) for result in results]))
        return 0
    print(f"{asked.pools} pools, {asked.models} models, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    for result in results:
        parts = ", ".join(f"{name} {wall:.2f} s ({cpu:.2f} CPU)" for name, (wall, cpu) in result.parts.items())
        rate = result.resources / result.wall_s
        print(f"{result.command:<18} {result.wall_s:6.1f} s  {result.resources} resources  {rate:5.1f}/s   {parts}")
    return 0


def measure(folder: Path, pools: int, models: int) -> list[Result]:
    """Measures preview and up of the fleet, then of the trivial program with as many resources."""
    write_files(folder / "root", pools, models)
    with _cloud() as port:
        raise_quotas(port)
        fleet = Trial(folder / "fleet", FLEET, {"BENCH_ROOT": str(folder / "root")}, port)
        results = [fleet.run("preview"), fleet.run("up"), fleet.run("up", "up again")]
        trivial = Trial(folder / "trivial", TRIVIAL, {"BENCH_COUNT": str(results[1].resources)}, port)
        results += [trivial.run("preview", "trivial preview"), trivial.run("up", "trivial up")]
    return results


@contextmanager
def _cloud() -> Iterator[int]:
    """The emulated AWS that judges every call, in a process of its own, on this port."""
    port = free_port()
    command = [sys.executable, "-m", "tools.cloud", f"--port={port}", "--administrator=test"]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _answers(port):
            if running.poll() is not None:
                raise SystemExit(f"the emulated AWS ended while starting: {' '.join(command)}")
            time.sleep(0.2)
        yield port
    finally:
        running.terminate()
        running.wait(timeout=30)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False


def raise_quotas(port: int) -> None:
    """Lets the emulated account start all nodes, in as many groups as EKS gives on request.

    Otherwise the preflight would rightly refuse the stack.
    """
    quotas = json.dumps({"L-DB2E81BA": 1_000_000, "L-6D54EA21": 100}).encode()
    switch = urllib.request.Request(f"http://127.0.0.1:{port}{QUOTAS}", data=quotas, method="PUT")
    urllib.request.urlopen(switch, timeout=60).read()


def write_files(root: Path, pools: int, models: int) -> None:
    """Writes a stack file and model files; the models take turns through the accelerators."""
    accelerators = list(TYPES)
    (root / "stacks").mkdir(parents=True)
    (root / "models").mkdir()
    entries = [
        {
            "name": f"p{index:02}",
            "accelerator": (name := accelerators[index % len(accelerators)]),
            "maxNodes": models,
            "instanceTypes": [TYPES[name]],
        }
        for index in range(pools)
    ]
    settings = {
        "models": ["*"],
        "target": "eks",
        "accountId": ACCOUNT,
        "auth": "none",
        "pools": entries,
        "cluster": {"publicAccessCidrs": ["203.0.113.0/24"]},
    }
    config = {"aws:region": REGION, **{f"modelfleet:{key}": value for key, value in settings.items()}}
    (root / "stacks" / "Pulumi.bench.yaml").write_text(yaml.safe_dump({"config": config}))
    for index in range(models):
        name = accelerators[index % len(accelerators)]
        resource = {f"accelerator_type:{name}": 0.001}
        model = {
            "deployment_config": {"autoscaling_config": {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1}},
            "engine_config": {"model_id": f"org/model-{index:04}", "type": "VLLMEngine"},
            "scaling_config": {
                "num_workers": 1,
                "num_gpus_per_worker": 1,
                "num_cpus_per_worker": 1,
                "placement_strategy": "STRICT_PACK",
                "resources_per_worker": resource,
            },
        }
        (root / "models" / f"org--model-{index:04}.yaml").write_text(yaml.safe_dump(model))


class Trial:
    """A throwaway Pulumi project with one program."""

    def __init__(self, folder: Path, program: Mapping[str, str], environ: Mapping[str, str], port: int) -> None:
        self._folder = folder
        (folder / "infra").mkdir(parents=True)
        (folder / "state").mkdir()
        runtime = {"name": "python", "options": {"toolchain": "pip", "virtualenv": sys.prefix}}
        project = {"name": "bench", "runtime": runtime, "main": "infra/"}
        (folder / "Pulumi.yaml").write_text(yaml.safe_dump(project))
        (folder / "infra" / "__main__.py").write_text(PROGRAM.format(**program))
        (folder / "passphrase").write_text("bench")
        self._environ = {
            **os.environ,
            **environ,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "BENCH_MARKS": str(folder / "marks.json"),
            "PYTHONPATH": str(ROOT),
            "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(folder / "passphrase"),
            "PULUMI_DEBUG_COMMANDS": "true",
        }
        self._pulumi("stack", "init", "bench")
        (folder / "Pulumi.bench.yaml").write_text(yaml.safe_dump({"config": {"aws:region": REGION}}))

    def run(self, operation: str, title: str = "") -> Result:
        """Runs and measures one command."""
        more = ("--yes", "--skip-preview") if operation == "up" else ()
        events = self._folder / "events.json"
        events.unlink(missing_ok=True)
        began = time.monotonic()
        self._pulumi(operation, "--stack", "bench", "--event-log", str(events), *more)
        wall = time.monotonic() - began
        summaries = [json.loads(line).get("summaryEvent") for line in events.read_text().splitlines()]
        changes = next(found["resourceChanges"] for found in reversed(summaries) if found)
        marks = json.loads((self._folder / "marks.json").read_text())
        return Result(title or operation, wall, sum(changes.values()), _parts(marks))

    def _pulumi(self, *arguments: str) -> None:
        done = subprocess.run(
            [str(PULUMI), *arguments, "--non-interactive"],
            cwd=self._folder,
            env=self._environ,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"pulumi {arguments[0]} failed:\n{done.stdout}{done.stderr}")


def _parts(marks: list[Any]) -> dict[str, tuple[float, float]]:
    """Seconds between one mark and the next, wall and CPU; the imports count from the start of the process."""
    parts = {}
    for (_, wall, cpu), (name, next_wall, next_cpu) in itertools.pairwise(marks):
        parts[name] = (next_wall - wall, next_cpu - (cpu if name != "imports" else 0.0))
    return parts


if __name__ == "__main__":
    sys.exit(main())
