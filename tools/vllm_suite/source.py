"""vLLM's tests, from the sdist of the pinned version, pointed at one served model."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.versions import PINNED
from tools.cache import once
from tools.paths import ROOT
from tools.progress import Step

HERE = Path(__file__).parent
MODULES = HERE / "modules.txt"
PACKAGES = ROOT / "requirements" / "vllm-suite.txt"
GIVEN = "VLLM_SDIST"
"""Environment variable with the sdist's path, where pip cannot get it."""
#: The sdist of the pinned version, 2026-11-30.
SDIST_SHA256 = "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad"

#: Models that the tests start servers for; each becomes the one that is served.
FOREIGN = (
    "HuggingFaceH4/zephyr-7b-beta", "HuggingFaceTB/SmolVLM-256M-Instruct", "Qwen/Qwen2-1.5B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "claude-3-7-sonnet-latest", "command-r-plus-08-2024", "facebook/opt-125m",
    "hmellor/tiny-random-LlamaForCausalLM", "intfloat/multilingual-e5-small", "meta-llama/Llama-3.2-1B-Instruct",
    "openai-community/gpt2",
)  # fmt: skip
#: Numbers that a small model's length cannot take: module, what is there, what the copy says.
NUMBERS = (
    ("entrypoints/serve/instrumentator/test_basic.py", "max_tokens=10000,", "max_tokens=1000,"),
    ("entrypoints/serve/instrumentator/test_basic.py", '"min_tokens": 10000', '"min_tokens": 1000'),
)


def modules() -> list[str]:
    """The modules of vLLM's `tests/` that ask a server over HTTP and mean something with a small text model."""
    lines = (line.split("#")[0].strip() for line in MODULES.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def tests_folder() -> Path:
    """The folder with vLLM's `tests/`, kept in the tools' cache. Raises `SetupError` without the sdist."""
    return once(f"vllm-tests-{SDIST_SHA256[:12]}", _unpack)


def packages() -> Path:
    """The folder with what vLLM's tests import beside this environment's packages."""
    pins = hashlib.sha256(PACKAGES.read_bytes()).hexdigest()[:12]
    return once(f"vllm-suite-packages-{pins}-{sys.version_info[0]}.{sys.version_info[1]}", _install)


def prepare(work: Path, model_id: str) -> None:
    """Copies the tests to `work/tests`. In the copy every name of a model that is served nowhere here is `model_id`."""
    target = work / "tests"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(tests_folder() / "tests", target)
    literal = re.compile("|".join(f'"{re.escape(name)}"' for name in FOREIGN))
    for module in modules():
        for path in (target / module, (target / module).parent / "conftest.py"):
            if path.is_file():
                path.write_text(literal.sub(f'"{model_id}"', path.read_text(encoding="utf-8")), encoding="utf-8")
    for module, there, small in NUMBERS:
        text = (target / module).read_text(encoding="utf-8")
        (target / module).write_text(text.replace(there, small), encoding="utf-8")


def hub_cache(work: Path, model_id: str, weights: Path) -> Path:
    """A Hub cache in `work` that holds the served model, where the tests find its tokenizer offline."""
    repository = work / "hf" / "hub" / f"models--{model_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "snapshots").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text("0", encoding="utf-8")
    link = repository / "snapshots" / "0"
    link.unlink(missing_ok=True)
    link.symlink_to(weights)
    return work / "hf"


def _unpack(folder: Path) -> None:
    archive = folder / f"vllm-{PINNED['vllm']}.tar.gz"
    with Step(f"{archive.name}, 45 MB"):
        _fetch(folder)
    found = hashlib.sha256(archive.read_bytes()).hexdigest() if archive.is_file() else "no file"
    if found != SDIST_SHA256:
        raise SetupError(
            f"{archive.name}: found SHA-256 {found}, expected {SDIST_SHA256}; "
            "if vLLM was raised, write the new one into tools/vllm_suite/source.py"
        )
    unpack(archive, folder)
    archive.unlink()


def unpack(archive: Path, folder: Path) -> None:
    """Writes the sdist's `tests/` into `folder`."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, _, path = member.name.partition("/")
            if path.startswith("tests/"):
                member.name = path
                tar.extract(member, folder, filter="data")


def _fetch(folder: Path) -> None:
    """The sdist, through the package client and the index that the machine uses.

    pip asks a source package for its name before it keeps it: vLLM's setup.py answers without building anything.
    """
    if given := os.environ.get(GIVEN):
        shutil.copy(given, folder / f"vllm-{PINNED['vllm']}.tar.gz")
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "vllm"]
    command += ["--no-build-isolation", "--dest", str(folder), f"vllm=={PINNED['vllm']}"]
    environment = {**os.environ, "PYTHONPATH": str(packages()), "VLLM_TARGET_DEVICE": "empty"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(
            f"vLLM's sdist cannot be fetched: {done.stderr.strip()[-300:]}; "
            f"download it from PyPI's page of vLLM and set {GIVEN} to its path"
        )


def _install(folder: Path) -> None:
    uv = str(Path(sys.executable).parent / "uv")
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(folder), "--no-deps"]
    done = subprocess.run([*command, "--require-hashes", "-r", str(PACKAGES)], capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"{PACKAGES.name} cannot be installed: {done.stderr.strip()[-300:]}; run: make setup")
