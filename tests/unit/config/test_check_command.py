"""`modelfleet check` as a user runs it: output, exit codes, `--json`, `--fix`, and how long it takes."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.config.time_limit import slowness

ROOT = Path(__file__).parents[3]
SHIPPED = Path(__file__).parent / "rayllm"


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modelfleet.cli.main", "check", *arguments],
        cwd=cwd,
        # A token, for the Hub asks for one for Llama 2.
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "error", "HF_TOKEN": "hf_x"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_projects_models_give_no_findings() -> None:
    done = run("models")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("no findings. Next: modelfleet plan\n")


def test_findings_go_to_stdout_and_the_exit_code_is_1(tmp_path: Path) -> None:
    bad = tmp_path / "m.yaml"
    bad.write_text(
        "engine_config: {model_id: a/b, engine_kwargs: {max_num_seq: 1}}\nscaling_config: {num_workers: 1}\n"
    )
    done = run("m.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "m.yaml:1: engine_config.engine_kwargs.max_num_seq: unknown to vLLM 0.32.0, did you mean max_num_seqs?",
        "m.yaml:2: scaling_config.resources_per_worker: no accelerator is named; add `accelerator_type:L4: 0.001` "
        "(allowed are T4, L4, A10G, L40S, A100-40G, A100-80G, H100, RTX-PRO-6000, H200, B200, B300)",
    ]
    assert done.stderr == "1 file: 2 errors.\n"


def test_json_output_has_every_field_of_a_finding(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("engine_config: 3\nscaling_config: {num_workers: 1, num_gpus_per_worker: 0}\n")
    done = run("--json", "m.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "files": 1,
        "models": [],
        "rewritten": [],
        "findings": [
            {
                "file": "m.yaml",
                "line": 1,
                "path": "engine_config",
                "severity": "error",
                "message": "found 3; a mapping is expected",
            }
        ],
    }


@pytest.mark.parametrize("pattern", ["rayllm", "rayllm/*.yaml", "rayllm/amazon--LightGPT.yaml"])
def test_files_folders_and_globs_are_read(pattern: str, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "rayllm")
    done = run("--json", pattern, cwd=tmp_path)
    files = json.loads(done.stdout)["files"]
    assert files == (1 if "amazon" in pattern else 7)


@pytest.mark.parametrize("pattern", ["none.yaml", "none/*.yaml", "empty"])
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run(pattern, cwd=tmp_path)
    assert done.returncode == 1
    assert (
        f"{pattern}: no such file, and not a folder with .yaml files; name a model file, a folder or a glob"
        in done.stdout
    )


def test_fix_rewrites_and_a_second_run_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    shutil.copy(SHIPPED / "meta-llama--Llama-2-7b-chat-hf.yaml", path)
    first, second = run("--fix", "m.yaml", cwd=tmp_path), run("--fix", "m.yaml", cwd=tmp_path)
    assert first.returncode == second.returncode == 0
    assert "rewritten: m.yaml" in first.stderr and "rewritten" not in second.stderr
    assert "max_ongoing_requests: 64" in path.read_text()
    left = [line for line in second.stdout.splitlines() if "notice" in line]
    assert all("modelfleet:trust.foreignCode" in line for line in left), "only a stack can answer that one"


def test_a_file_that_is_not_yaml_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\x00")
    (tmp_path / "b.yaml").write_text("{}")
    done = run("--fix", "a.yaml", "b.yaml", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stdout.count("a.yaml") == 1 and "b.yaml" in done.stdout


def test_a_stack_file_is_checked_as_a_stack_file(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "Pulumi.dev.yaml").write_text("config:\n  modelfleet:target: moon\n")
    done = run("stacks", cwd=tmp_path)
    assert done.returncode == 1
    assert "stacks/Pulumi.dev.yaml:2: modelfleet:target: found 'moon'" in done.stdout


def test_the_local_stack_makes_a_plan() -> None:
    done = run("--stack", "local")
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_takes_little_cpu_time_and_loads_no_engine() -> None:
    code = (
        "import sys; from modelfleet.cli.check import run_check; from pathlib import Path;"
        "run_check([Path('models')], stack=None, as_json=True, fix=False);"
        "print([m for m in ('vllm', 'ray', 'pulumi', 'torch', 'boto3', 'ruamel') if m in sys.modules], file=sys.stderr)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr.strip() == "[]", "check must start quickly"
    assert after.ru_utime - before.ru_utime < 1.5 * slowness(), "0.6 s where it was written; over twice is a regression"
