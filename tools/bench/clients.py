"""`python -m tools.bench.clients`: others' load generators, unchanged, against `vllm serve` and against our `/v1`.

`vllm bench serve` comes with vllm. guidellm (0.8.1) wants another click than Ray, so what it needs beside this
environment's packages (`requirements/guidellm.txt`, 240 MB) lies in a folder of its own in the tools' cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfleet.serving.config.errors import SetupError
from tools.bench import models, servers
from tools.bench.__main__ import VARIANTS
from tools.bench.load import Target
from tools.cache import once
from tools.paths import ROOT

PACKAGES = ROOT / "requirements" / "guidellm.txt"
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 32
#: `vllm bench serve` without the command `vllm`, which fails with vLLM's CPU build (it asks for a package named vllm).
VLLM_BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args())
"""


@dataclass(frozen=True)
class Result:
    """What a client says of one load: requests a second, ms to the first token (median, 99th percentile), failures."""

    concurrency: int
    per_second: float
    first_ms: float
    first_p99_ms: float
    failed: int


def packages() -> Path:
    """The folder with guidellm; raises `SetupError` where it cannot be installed."""
    pins = hashlib.sha256(PACKAGES.read_bytes()).hexdigest()[:12]
    return once(f"guidellm-{pins}-{sys.version_info[0]}.{sys.version_info[1]}", _install)


def _install(folder: Path) -> None:
    uv = str(Path(sys.executable).parent / "uv")
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(folder), "--no-deps"]
    done = subprocess.run([*command, "--require-hashes", "-r", str(PACKAGES)], capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"{PACKAGES.name} cannot be installed: {done.stderr.strip()[-300:]}; check the network")


def guidellm(target: Target, tokenizer: Path, concurrency: int, requests: int, folder: Path) -> Result:
    """guidellm against a server's root; raises `RuntimeError` with its last words when it does not run."""
    out = folder / "guidellm.json"
    command = [
        sys.executable, "-m", "guidellm", "run", "--disable-console-interactive",
        "--backend", f"kind=openai_http,target={target.base},model={target.model}",
        "--profile", f"kind=concurrent,streams={concurrency}",
        "--constraint", f"kind=max_requests,count={requests}",
        "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
        "--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}",
        "--output", f"kind=json,path={out}",
    ]  # fmt: skip
    _run(command, {"PYTHONPATH": str(packages())}, folder)
    return from_guidellm(json.loads(out.read_text(encoding="utf-8")), concurrency)


def from_guidellm(report: Mapping[str, Any], concurrency: int) -> Result:
    """The figures of the only benchmark in guidellm's report."""
    found = report["benchmarks"][0]["metrics"]
    first, counts = found["time_to_first_token_ms"]["successful"], found["request_totals"]
    return Result(
        concurrency,
        found["requests_per_second"]["successful"]["mean"],
        first["median"],
        first["percentiles"]["p99"],
        counts["errored"],
    )


def vllm_bench(target: Target, tokenizer: Path, concurrency: int, requests: int, folder: Path) -> Result:
    """`vllm bench serve` against a server's chat; raises `RuntimeError` with its last words when it does not run."""
    (script := folder / "vllm_bench.py").write_text(VLLM_BENCH, encoding="utf-8")
    command = [
        sys.executable, str(script), "--backend", "openai-chat", "--base-url", target.base,
        "--endpoint", target.path, "--model", target.model, "--tokenizer", str(tokenizer),
        "--dataset-name", "random", "--random-input-len", str(PROMPT_TOKENS),
        "--random-output-len", str(OUTPUT_TOKENS), "--ignore-eos", "--num-prompts", str(requests),
        "--max-concurrency", str(concurrency), "--percentile-metrics", "ttft", "--metric-percentiles", "99",
        "--disable-tqdm", "--save-result", "--result-dir", str(folder), "--result-filename", "vllm.json",
    ]  # fmt: skip
    _run(command, {}, folder)
    return from_vllm_bench(json.loads((folder / "vllm.json").read_text(encoding="utf-8")), concurrency)


def from_vllm_bench(report: Mapping[str, Any], concurrency: int) -> Result:
    """The figures of vLLM's report."""
    return Result(
        concurrency,
        report["request_throughput"],
        report["median_ttft_ms"],
        report["p99_ttft_ms"],
        report["failed"],
    )


def _run(command: Sequence[str], more: Mapping[str, str], folder: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=folder, env={**os.environ, **offline, **more}, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-600:]
        raise RuntimeError(f"{Path(command[1]).name} {command[2]} ended with {done.returncode}: {said}")


CLIENTS = {"guidellm": guidellm, "vllm bench serve": vllm_bench}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 2 when a server or a client does not run."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.clients", description="Runs guidellm and vllm bench.")
    parser.add_argument("--model", choices=["tiny", "smollm"], default="tiny", help="as in tools.bench")
    parser.add_argument("--requests", type=int, default=100, help="requests per load")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64], help="requests at a time")
    parser.add_argument("--port", type=int, default=8750, help="first of 60 ports")
    parser.add_argument("--gcs-port", type=int, default=6700, help="first of 5 ports of Ray")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a time limit must not leave servers behind
    rows: list[tuple[str, str, Result]] = []
    try:
        for name in ("vllm", "fleet"):
            rows += _measure(name, options)
    except (RuntimeError, SetupError) as problem:
        print(f"{problem}", file=sys.stderr)
        return 2
    finally:
        print(table(rows))
    return 0


def _measure(name: str, options: argparse.Namespace) -> list[tuple[str, str, Result]]:
    """Both clients at each concurrency against one server; of ours its `/v1`."""
    rows: list[tuple[str, str, Result]] = []
    tokenizer, ports = models.folder_of(options.model), servers.Ports(options.port, options.gcs_port)
    with (
        tempfile.TemporaryDirectory(prefix="bench-clients-") as made,
        servers.serve(VARIANTS[name], models.model_file(options.model), ports, Path(made)) as running,
    ):
        target = next(one for one in running.targets if name == "vllm" or one.name.endswith("gateway /v1"))
        for client, ask in CLIENTS.items():
            for concurrency in options.concurrency:
                requests = max(options.requests, 3 * concurrency)
                rows.append((client, target.name, ask(target, tokenizer, concurrency, requests, Path(made))))
                print(f"    {client}, {target.name}: {rows[-1][2]}", file=sys.stderr)
    return rows


def table(rows: Sequence[tuple[str, str, Result]]) -> str:
    """One line for each client, server and concurrency, as Markdown."""
    lines = [
        "| client | server | at a time | req/s | first token ms: median | p99 | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for client, server, one in sorted(rows, key=lambda row: (row[0], row[2].concurrency)):
        cells = f"{one.per_second:.1f} | {one.first_ms:.1f} | {one.first_p99_ms:.1f} | {one.failed}"
        lines.append(f"| {client} | {server} | {one.concurrency} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
