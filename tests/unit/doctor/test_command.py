"""`modelfleet doctor`: what is printed, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelfleet.cli import doctor as command
from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.subject import open_subject
from modelfleet.serving.config.errors import InputErrors, SetupError

ROOT = Path(__file__).parents[3]
MODEL = "HuggingFaceTB--SmolLM2-135M-Instruct"
FAILED = (
    "DEPLOY_FAILED: Error:\nWeightsError: org/x is gated on the Hugging Face Hub and this node's token cannot read it"
)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces all readers by readings."""
    monkeypatch.chdir(ROOT)

    def replace(*readings: Reading) -> None:
        readers = {one.layer: lambda _, one=one: one for one in readings}
        monkeypatch.setattr(command, "readers_of", lambda *_: readers)

    return replace


def fact(text: str, models: tuple[str, ...] = (MODEL,)) -> Reading:
    return Reading(Layer.SERVE, (Evidence(Layer.SERVE, "application", "application x", text, "10:00", models),))


def test_a_healthy_stack_is_one_line_and_exit_code_0(says: Any, capsys: pytest.CaptureFixture[str]) -> None:
    says(Reading(Layer.FILES), Reading(Layer.SERVE))
    assert command.run_doctor("local", None) == 0
    assert capsys.readouterr().out == "stack local: nothing to fix in files, serve\n"


def test_a_cause_is_printed_with_place_evidence_fix_and_consequence(
    says: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    says(fact(FAILED))
    assert command.run_doctor("local", None) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("org/x is gated on the Hugging Face Hub, and the token in use may not read it")
    assert said[1].startswith(f"  where:   models/{MODEL}.yaml:")
    assert said[2].startswith("  shown by application x at 10:00 (serve): DEPLOY_FAILED")
    assert said[3].startswith("  fix:     accept the licence") and "--stack local" in said[3]
    assert said[4].startswith("  then:    `modelfleet up --stack local` hands the token")


def test_a_layer_that_is_unread_is_exit_code_2_unless_something_is_to_be_fixed(
    says: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = Reading(Layer.KUBERNETES, unread="no Kubernetes API answers; Authorization: Bearer abcdefgh12345678")
    says(Reading(Layer.FILES), silent)
    assert command.run_doctor("local", None) == 2
    assert capsys.readouterr().err == ("kubernetes could not be read: no Kubernetes API answers; Authorization: ***\n")
    says(silent, fact(FAILED))
    assert command.run_doctor("local", None) == 1


def test_json_has_all_of_it(says: Any, capsys: pytest.CaptureFixture[str]) -> None:
    says(fact(FAILED), Reading(Layer.ENGINE, unread="no answer within 7 s"))
    assert command.run_doctor("local", None, as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    (cause,) = found["causes"]
    assert (found["healthy"], cause["rule"], cause["layer"], cause["models"]) == (
        False,
        "gated-model",
        "engine",
        [MODEL],
    )
    assert cause["evidence"][0]["object"] == "application x" and cause["line"] > 0
    assert found["layers"] == [
        {"layer": "serve", "unread": None},
        {"layer": "engine", "unread": "no answer within 7 s"},
    ]


def test_a_model_that_the_stack_does_not_have_is_refused_with_a_suggestion(says: Any) -> None:
    says(Reading(Layer.FILES))
    with pytest.raises(InputErrors, match="did you mean HuggingFaceTB/SmolLM2-135M-Instruct"):
        command.run_doctor("local", "HuggingFaceTB/SmolLM-135M-Instruct")


@pytest.mark.parametrize("name", ["HuggingFaceTB/SmolLM2-135M-Instruct", MODEL, f"models/{MODEL}.yaml"])
def test_a_model_is_named_by_id_slug_or_file(name: str, says: Any) -> None:
    says(fact(FAILED, ("org--other",)))
    assert command.run_doctor("local", name) == 0, "another model's fault"


def test_a_stack_that_was_never_brought_up_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PULUMI_BACKEND_URL", raising=False)
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    (tmp_path / "Pulumi.yaml").write_text("name: fleet\nruntime: python\n")
    found = command.export(tmp_path, "local", 5)
    assert found.absent is not None and not (tmp_path / ".modelfleet").exists()


def test_a_bundle_has_all_evidence_and_no_secret(says: Any, tmp_path: Path) -> None:
    says(fact(FAILED), Reading(Layer.FILES, (Evidence(Layer.FILES, "x", "o", "HF_TOKEN=abcdefgh12345678"),)))
    assert command.run_doctor("local", None, bundle=tmp_path / "why.json") == 1
    text = (tmp_path / "why.json").read_text()
    found = json.loads(text)
    assert len(found["evidence"]) == 2 and found["causes"][0]["rule"] == "gated-model"
    assert "abcdefgh" not in text and "HF_TOKEN=***" in text


def test_a_bundle_that_cannot_be_written_is_said(says: Any, tmp_path: Path) -> None:
    says(Reading(Layer.FILES))
    with pytest.raises(SetupError, match="cannot be written"):
        command.run_doctor("local", None, bundle=tmp_path)


def test_a_model_file_at_fault_does_not_hide_the_others(tmp_path: Path) -> None:
    for folder in ("models", "stacks"):
        (tmp_path / folder).mkdir()
    good = (ROOT / "models" / f"{MODEL}.yaml").read_text()
    (tmp_path / "models" / "good.yaml").write_text(good)
    (tmp_path / "models" / "bad.yaml").write_text("engine_config: {}\n")
    stack = (ROOT / "stacks" / "Pulumi.local.yaml").read_text().replace(f"[{MODEL}]", '["*"]')
    (tmp_path / "stacks" / "Pulumi.local.yaml").write_text(stack)
    subject = open_subject(tmp_path, "local")
    assert {one.file for one in subject.findings} == {"models/bad.yaml"}
    assert subject.plan is not None and [one.slug for one in subject.plan.models] == [MODEL]
