"""Foreign code: which settings of a model file run it, and that only a stack's `trust` lets them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelfleet.cli.check import run_check
from modelfleet.infra.catalog.foreign_code import foreign_code
from modelfleet.infra.planning.trust import trust_findings, trust_notices
from modelfleet.serving.config.errors import InputErrors, Severity
from tests.unit.listener import listening
from tests.unit.planning.builders import model, planned, pool, stack

ROOT = Path(__file__).parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: What the review tried, and each other way: the engine's arguments, the runtime environment, its variables.
ASKED: dict[str, dict[str, Any]] = {
    "trust_remote_code": {"engine_kwargs": {"trust_remote_code": True}},
    "worker_cls": {"engine_kwargs": {"worker_cls": "mine.Worker"}},
    "worker_extension_cls": {"engine_kwargs": {"worker_extension_cls": "mine.Extension"}},
    "scheduler_cls": {"engine_kwargs": {"scheduler_cls": "mine.Scheduler"}},
    "logits_processors": {"engine_kwargs": {"logits_processors": ["mine:Processor"]}},
    "tool_parser_plugin": {"engine_kwargs": {"tool_parser_plugin": "/tmp/parser.py"}},
    "reasoning_parser_plugin": {"engine_kwargs": {"reasoning_parser_plugin": "/tmp/parser.py"}},
    "io_processor_plugin": {"engine_kwargs": {"io_processor_plugin": "mine"}},
    "kv_connector_module_path": {"engine_kwargs": {"kv_transfer_config": {"kv_connector_module_path": "mine"}}},
    "ec_connector_module_path": {"engine_kwargs": {"ec_transfer_config": {"ec_connector_module_path": "mine"}}},
    "distributed_executor_backend": {"engine_kwargs": {"distributed_executor_backend": "mine.Executor"}},
    "backend": {"engine_kwargs": {"compilation_config": {"backend": "mine.compiler"}}},
    "load_format": {"engine_kwargs": {"load_format": "pt"}},
    "VLLM_ALLOW_INSECURE_SERIALIZATION": {"runtime_env": {"env_vars": {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}}},
    "VLLM_SERVER_DEV_MODE": {"runtime_env": {"env_vars": {"VLLM_SERVER_DEV_MODE": "1"}}},
    "PYTHONPATH": {"runtime_env": {"env_vars": {"PYTHONPATH": "/tmp"}}},
    "LD_PRELOAD": {"runtime_env": {"env_vars": {"LD_PRELOAD": "/tmp/a.so"}}},
    "pip": {"runtime_env": {"pip": ["left-pad"]}},
    "uv": {"runtime_env": {"uv": ["left-pad"]}},
    "conda": {"runtime_env": {"conda": "mine"}},
    "py_modules": {"runtime_env": {"py_modules": ["s3://elsewhere/code.zip"]}},
    "py_executable": {"runtime_env": {"py_executable": "/tmp/python"}},
    "worker_process_setup_hook": {"runtime_env": {"worker_process_setup_hook": "mine.hook"}},
    "java_jars": {"runtime_env": {"java_jars": ["s3://elsewhere/a.jar"]}},
    "image_uri": {"runtime_env": {"image_uri": "elsewhere/image"}},
    "container": {"runtime_env": {"container": {"image": "elsewhere/image"}}},
}
HARMLESS: list[dict[str, Any]] = [
    {"engine_kwargs": {"trust_remote_code": False, "worker_cls": "auto", "load_format": "safetensors"}},
    {"engine_kwargs": {"compilation_config": {"backend": "inductor"}, "max_num_seqs": 8}},
    {"engine_kwargs": {"distributed_executor_backend": "mp"}},
    {"engine_kwargs": {"worker_extension_cls": "", "kv_transfer_config": {"kv_connector": "LMCacheConnectorV1"}}},
    {"runtime_env": {"env_vars": {"VLLM_SERVER_DEV_MODE": "0", "OMP_NUM_THREADS": "8"}}},
]


def test_foreign_code_that_runs_on_another_card_alone_is_found_there() -> None:
    """Engine arguments of a fallback are engine arguments."""
    other = {"accelerator": "A10G", "engine_kwargs": {"worker_cls": "mine.Worker"}}
    found = trust_findings(stack(pool()), [model(fallback=[other])])
    assert [one.path for one in found] == ["scaling_config.fallback[0].engine_kwargs.worker_cls"]


def test_every_row_of_the_table_has_a_case() -> None:
    assert {row.key[-1] for row in foreign_code()} == set(ASKED)


@pytest.mark.parametrize(("key", "engine"), ASKED.items(), ids=list(ASKED))
def test_foreign_code_is_refused_at_its_line_unless_the_stack_trusts_the_model(
    key: str, engine: dict[str, Any]
) -> None:
    """One reviewed line in a model file ran anybody's code beside every other model, and `check` said nothing."""
    made = model("org/model", **engine)
    (found,) = trust_findings(stack(pool("l4", "L4")), [made])
    assert found.severity is Severity.ERROR and found.line and found.path.endswith(key)
    assert "add org/model to modelfleet:trust.foreignCode in stacks/Pulumi.test.yaml" in found.message
    pinned = model("org/model", revision=COMMIT, **engine)
    assert trust_findings(stack(pool("l4", "L4"), trust={"foreignCode": ["org/model"]}), [pinned]) == []
    (other, _) = trust_findings(stack(pool("l4", "L4"), trust={"foreignCode": ["org/other"]}), [made])
    assert other == found, "trust in one model is none in another"


def test_a_replicas_own_runtime_environment_counts_too() -> None:
    made = model("org/model", actor={"runtime_env": {"pip": ["left-pad"], "env_vars": {"PYTHONPATH": "/tmp"}}})
    found = trust_findings(stack(pool("l4", "L4")), [made])
    assert sorted(one.path for one in found) == [
        "deployment_config.ray_actor_options.runtime_env.env_vars.PYTHONPATH",
        "deployment_config.ray_actor_options.runtime_env.pip",
    ]


@pytest.mark.parametrize("engine", HARMLESS, ids=str)
def test_what_stays_in_the_image_needs_no_trust(engine: dict[str, Any]) -> None:
    assert trust_findings(stack(pool("l4", "L4")), [model("org/model", **engine)]) == []


def test_a_plan_is_refused() -> None:
    with pytest.raises(InputErrors) as refused:
        planned([model("org/model", engine_kwargs={"trust_remote_code": True})], stack(pool("l4", "L4")))
    assert any("trust.foreignCode" in one.message for one in refused.value.findings)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12]])
def test_trusted_code_must_be_a_commit(revision: str | None) -> None:
    """Who owns the repository, or takes it over, could otherwise run anything at the next start of a replica."""
    trusting = stack(pool("l4", "L4"), trust={"foreignCode": ["org/model"]})
    named = {"revision": revision} if revision else {}
    (found,) = trust_findings(trusting, [model("org/model", engine_kwargs={"trust_remote_code": True}, **named)])
    assert found.severity is Severity.ERROR and found.path == "engine_config.revision"
    assert "modelfleet check --fix --pin" in found.message


def test_code_from_a_bucket_or_folder_of_ones_own_needs_no_commit() -> None:
    code = model("org/model", engine_kwargs={"trust_remote_code": True})
    for source in ("s3://ours/model", "file:///weights/model"):
        trusting = stack(
            pool("l4", "L4"), trust={"foreignCode": ["org/model"]}, mirror={"sources": {"org/model": source}}
        )
        assert trust_findings(trusting, [code]) == []


def test_trust_that_outlives_its_model_is_a_warning() -> None:
    trusting = stack(pool("l4", "L4"), trust={"foreignCode": ["org/gone"]})
    (found,) = trust_findings(trusting, [model("org/model")])
    assert found.severity is Severity.WARNING and found.path == "modelfleet:trust.foreignCode[0]" and found.line


def test_trust_names_models_one_by_one() -> None:
    with pytest.raises(ValueError, match="without"):
        stack(pool("l4", "L4"), trust={"foreignCode": ["org/*"]})


def test_no_value_is_shown_because_an_index_has_a_password_in_its_address() -> None:
    made = model("org/model", runtime_env={"pip": ["--index-url=https://me:hunter2@index.example/"]})
    (found,) = trust_findings(stack(pool("l4", "L4")), [made])
    (notice,) = trust_notices(made)
    assert "hunter2" not in found.message + notice.message


def test_check_without_a_stack_says_what_a_stack_must_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models"
    folder.mkdir()
    data = model("org/model", engine_kwargs={"trust_remote_code": True}).document.data
    (folder / "org--model.yaml").write_text(yaml.safe_dump(data))
    assert run_check([], stack=None, as_json=False, fix=False) == 0
    assert "modelfleet:trust.foreignCode" in " ".join(capsys.readouterr().out.split())


PIN = "import sys; from pathlib import Path; from modelfleet.cli.check import run_check\n" + (
    "sys.exit(run_check([Path(sys.argv[1])], stack=None, as_json=False, fix=True, pin=True))"
)


def pin(file: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`modelfleet check --fix --pin FILE` in its own process, which reads HF_ENDPOINT when it starts."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "NO_PROXY": "*", "HF_HOME": str(file.parent)}
    return subprocess.run(
        [sys.executable, "-c", PIN, str(file)],
        env=env | environment, cwd=file.parent, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def written(folder: Path, **engine: Any) -> Path:
    file = folder / "org--model.yaml"
    data = model("org/model", engine_kwargs={"trust_remote_code": True}, **engine).document.data
    file.write_text(yaml.safe_dump(data, sort_keys=False) + "# the last line stays\n")
    return file


@pytest.mark.parametrize("revision", [None, "main", "v1"])
def test_pin_writes_the_commit_that_the_hub_names_and_nothing_else(tmp_path: Path, revision: str | None) -> None:
    file = written(tmp_path, **({"revision": revision} if revision else {}))
    before = file.read_text()
    with listening({"sha": COMMIT}) as hub:
        done = pin(file, HF_ENDPOINT=hub.url())
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"/api/models/org/model/revision/{revision or 'main'}" in {path for path, _ in hub.seen}
    after = file.read_text()
    assert yaml.safe_load(after)["engine_config"]["revision"] == COMMIT
    kept = [line for line in before.splitlines() if "revision:" not in line]
    assert [line for line in after.splitlines() if "revision:" not in line] == kept
    assert pin(file, HF_ENDPOINT="http://127.0.0.1:9").returncode == 0, "a commit asks nobody"
    assert file.read_text() == after


def test_pin_says_when_the_hub_does_not_answer_and_changes_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, revision="main")
    before = file.read_text()
    done = pin(file, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and "nothing was pinned" in " ".join(done.stdout.split())
    assert file.read_text() == before
    with listening({"sha": "main"}) as hub:
        assert pin(file, HF_ENDPOINT=hub.url()).returncode == 1, "no commit, whatever it is"
    assert file.read_text() == before
