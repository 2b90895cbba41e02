"""A compile cache that a warm-up Job's program sealed, in a replica that Serve started: vLLM's own compiler on the CPU.

The CPU's compiled kernels are slow to make and not served (`serving/engine_args.py`); here only how often a compiler runs
counts. Triton has no CPU build, so its part of a seal is shown on a card only.

vLLM's own file of the whole model is of use on a card only. On a CPU vLLM 0.32 leaves compiling to torch
(`platforms/cpu.py`: `DYNAMO_TRACE_ONCE`); what torch saves there has no `finalize_loading`, which vLLM calls of what it
loads (`compilation/decorators.py`, `_try_load_aot_compiled_fn`). So it traces the model again, and torch finds the
kernels by their content.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from modelfleet.serving.seal.copy import is_sealed
from tests.serving.cluster import ENVIRONMENT, ROOT, Cluster
from tests.serving.conftest import BUCKET, application, model

pytestmark = pytest.mark.long(why="a Job and a replica compile with vLLM")

KEY = "00112233445566ff"
URI = f"s3://{BUCKET}/seals/test--sealed/{KEY}"
#: vLLM 0.32 `compilation/decorators.py`: it loads what is there, or saves what it compiled.
LOADED, SAVED = "Directly load AOT compilation from path", "saved AOT compiled function to"
#: Why it does not on a CPU. Once this is mended there, a replica has to say LOADED here, too.
NOT_ON_A_CPU = "has no attribute 'finalize_loading'"
JOB_S = 900
#: As in pods. vLLM compiles anew where a variable of its own is another, and this one differs in other tests' cluster.
PROCESSES = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


@pytest.fixture(scope="module")
def args(tiny: Path) -> dict[str, Any]:
    """The application's args with a seal; vLLM compiles where the file says so."""
    compiling = {"dtype": "float32", "max_num_seqs": 8, "enforce_eager": False}
    data = model("test/sealed", tiny, engine={"engine_kwargs": compiling})
    one = application(data)
    one["args"]["weights"]["seal"] = URI
    return one


@pytest.fixture(scope="module")
def job(args: dict[str, Any], bucket: Any, s3: dict[str, str], scratch: Path) -> str:
    """What the Job's program said; its disk goes with it, as a pod's does."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        **ENVIRONMENT,
        **s3,
        "PYTHONPATH": str(ROOT),
        "ARGS": json.dumps(args["args"]),
        "VLLM_CACHE_ROOT": str(scratch / "vllm"),
        **PROCESSES,
    }
    command = [sys.executable, "-m", "modelfleet.serving.warm_up"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=JOB_S, cwd=scratch)
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said[-4000:]
    (scratch / "vllm" / KEY).rename(scratch / "of-the-job")
    return said


def test_the_warm_up_compiles_and_seals(job: str, monkeypatch: pytest.MonkeyPatch, s3: dict[str, str]) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    assert SAVED in job and LOADED not in job
    assert is_sealed(URI)
    assert "/v1/completions: 200" in job
    print(*[line for line in job.splitlines() if re.search(r"compile|seconds|sealed|started and", line)], sep="\n")


def kernels(root: Path) -> dict[str, int]:
    """What the C++ compiler made below `root`, and in which second; a copy keeps the times."""
    return {path.relative_to(root).as_posix(): int(path.stat().st_mtime) for path in root.rglob("*.so")}


def test_a_replica_on_another_node_compiles_nothing(
    job: str, args: dict[str, Any], cluster: Cluster, scratch: Path
) -> None:
    """The same folder as the Job's, and empty, as on a node that never ran the model."""
    args["args"]["model"]["engine_config"]["runtime_env"] = {
        "env_vars": {"VLLM_CACHE_ROOT": str(scratch / "vllm"), **PROCESSES}
    }
    cluster.serve(args)
    cluster.wait("test--sealed")
    answer = requests.post(
        f"{cluster.url('test--sealed')}/v1/completions",
        json={"model": "test/sealed", "prompt": "The capital", "max_tokens": 4},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    (replica,) = cluster.replicas("test--sealed")
    log = (cluster.logs / replica["log_file_path"].lstrip("/")).read_text(errors="replace")
    everything = log + "".join(
        path.read_text(errors="replace") for path in cluster.logs.glob(f"worker-*-{replica['pid']}.*")
    )
    print(
        *[line for line in everything.splitlines() if re.search(r"compiled|ready |AOT|Compiling model again", line)],
        sep="\n",
    )
    assert "compiled code from" in everything
    assert LOADED in everything or NOT_ON_A_CPU in everything
    made = kernels(scratch / "of-the-job")
    assert made and kernels(scratch / "vllm" / KEY) == made
