"""An environment with only requirements/operator.txt, as for a deploy job: no Ray, vLLM or transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: These start in their own processes, which have Ray, vLLM and obstore.
RUN_BESIDE_RAY = [
    "modelfleet.infra.local.ray_head",
    "modelfleet.serving.app",
    "modelfleet.serving.engine",
    "modelfleet.serving.mirror.gcs_azure",
]
IMPORT_ALL = """
import importlib, json, pkgutil
missing = []
for module in pkgutil.walk_packages(importlib.import_module("modelfleet").__path__, "modelfleet."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError:
            missing.append(module.name)
print(json.dumps(missing))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of such an environment, which uv links from its cache."""
    folder = tmp_path_factory.mktemp("operator") / "venv"
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    requirements = ["--require-hashes", str(ROOT / "requirements" / "operator.txt")]
    subprocess.run([uv, "pip", "sync", "--quiet", "--python", str(folder / "bin/python"), *requirements], check=True)
    return folder / "bin" / "python"


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_module_imports_except_those_that_run_with_ray(python: Path) -> None:
    done = run(python, "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == RUN_BESIDE_RAY


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["check", "models", "--stack", "prod"], ["plan", "--stack", "prod"], ["manifests", "--stack", "prod", "--json"]],
    ids=lambda words: words[0],
)
def test_the_commands_of_a_deploy_job_work(python: Path, words: list[str]) -> None:
    done = run(python, "-m", "modelfleet.cli.main", *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_render_works_or_says_what_to_install(python: Path, tmp_path: Path) -> None:
    messages = tmp_path / "messages.json"
    messages.write_text('[{"role": "user", "content": "Hi"}]')
    templated = run(
        python, "-m", "modelfleet.cli.main", "render", "models/meta-llama--Llama-2-7b-chat-hf.yaml", str(messages)
    )
    assert (templated.returncode, templated.stdout) == (0, "[INST] Hi [/INST]\n"), templated.stderr
    bare = run(
        python, "-m", "modelfleet.cli.main", "render", "models/HuggingFaceTB--SmolLM2-135M-Instruct.yaml", str(messages)
    )
    assert bare.returncode == 2, "the fault is in the environment, not in the user's input"
    assert "transformers is missing" in bare.stderr and "make setup" in bare.stderr
    assert "Traceback" not in bare.stderr
