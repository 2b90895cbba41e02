"""`modelfleet doctor --watch`: what changed, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from modelfleet.cli import doctor
from modelfleet.cli.doctor_watch import Change, Seen, Watch, changes
from modelfleet.cli.main import app
from modelfleet.doctor.diagnose import Cause
from modelfleet.doctor.evidence import Layer, Reading
from modelfleet.doctor.look import Looked
from modelfleet.serving.config.errors import Finding, InputErrors
from tests.unit.doctor.builders import evidence, judged

ROOT = Path(__file__).parents[3]
GATED = "org/model is gated on the Hugging Face Hub and this node's token cannot read it; token=hf_abcdefgh12345678"


def gated(name: str = "pod a") -> Cause:
    (cause,) = judged(evidence("application", GATED, object=name))
    return cause


def seen(*causes: Cause, unread: str = "") -> Seen:
    return Seen(causes, (Reading(Layer.AWS, unread=unread),) if unread else (), 1 if causes else 2 if unread else 0)


def kinds(before: Seen | None, now: Seen) -> list[str]:
    return [change.kind for change in changes(before, now)]


def test_only_what_changed_is_a_change() -> None:
    other = replace(gated(), models=("org--other",))
    assert kinds(None, seen()) == ["healthy"]
    assert kinds(seen(), seen()) == []
    assert kinds(seen(), seen(gated())) == ["found"]
    assert kinds(seen(gated()), seen(gated("pod b"))) == [], "the same fault, in a pod that was made again"
    assert kinds(seen(gated()), seen(gated(), other)) == ["found"]
    assert kinds(seen(gated(), other), seen(gated())) == ["gone"]
    assert kinds(seen(gated()), seen()) == ["gone", "healthy"]


def test_a_layer_that_falls_silent_and_speaks_again_is_said_once_each() -> None:
    silent = seen(unread="no credentials")
    assert [(one.kind, one.layer, one.why) for one in changes(seen(), silent)] == [("unread", "aws", "no credentials")]
    assert kinds(silent, silent) == []
    assert kinds(silent, seen()) == ["read", "healthy"]


def test_a_layer_that_falls_silent_mends_nothing() -> None:
    """The API server goes while a pod is sick: neither is the pod well nor the stack."""
    sick, shown = gated(), gated().evidence[0].layer
    away = Seen((), (Reading(shown, unread="no answer"),), 2)
    assert kinds(seen(sick), away) == ["unread"]
    assert kinds(None, away) == ["unread"]
    assert kinds(away, seen(sick)) == ["found", "read"]
    assert kinds(away, seen()) == ["read", "healthy"]
    other = replace(away, unread=(Reading(Layer.AWS, unread="no credentials"),))
    assert shown is not Layer.AWS and kinds(seen(sick), other) == ["gone", "unread"]


class Looks:
    """Looks one after another, then Ctrl-C."""

    def __init__(self, *looks: Seen) -> None:
        self.looks = list(looks)

    def __call__(self) -> Seen:
        return self.looks.pop(0)

    def sleep(self, seconds: float) -> None:
        if not self.looks:
            raise KeyboardInterrupt


def watched(show: Callable[[Change], None], *looks: Seen, as_json: bool = False) -> int:
    given = Looks(*looks)
    return Watch(given, show, as_json=as_json, sleep=given.sleep).run()


def test_its_exit_code_is_that_of_the_last_look() -> None:
    shown: list[Change] = []
    assert watched(shown.append, seen(), seen(gated())) == 1
    assert watched(shown.append, seen(gated()), seen()) == 0
    assert watched(shown.append, seen(), seen(unread="x")) == 2
    assert [one.kind for one in shown] == ["healthy", "found", "found", "gone", "healthy", "healthy", "unread"]


def test_json_is_a_line_a_change_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    watched(lambda change: None, seen(), seen(gated()), seen(gated()), seen(), as_json=True)
    out = capsys.readouterr().out
    found = [json.loads(line) for line in out.splitlines()]
    assert [one["change"] for one in found] == ["healthy", "found", "gone", "healthy"]
    assert found[1]["cause"]["rule"] == "gated-model" and found[1]["at"]
    assert "hf_abcdefgh" not in out


def test_the_command_ends_on_ctrl_c_with_the_code_of_its_last_look(tmp_path: Path) -> None:
    """A stack of this checkout's files that nobody brought up."""
    for folder in ("models", "stacks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "Pulumi.yaml").write_text("name: fleet\nruntime: python\n")
    environ = {**os.environ, "PULUMI_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "modelfleet.cli.main", "doctor", "--watch", "--json", "--stack", "local"]
    # A shell's background jobs ignore SIGINT, and so would what they start.
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    how: Any = {"cwd": tmp_path, "env": environ, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **how, preexec_fn=default)  # noqa: PLW1509  it takes no lock
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (first["change"], first["cause"]["rule"]) == ("found", "never-brought-up")
    assert process.returncode == 1
    assert "Traceback" not in rest


def test_a_stack_file_that_is_half_written_ends_no_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = InputErrors([Finding("stacks/Pulumi.x.yaml", 3, "", "is no YAML")])
    looks: list[list[Cause] | BaseException] = [[gated()], broken, broken, [], KeyboardInterrupt()]

    def examined(*_: object) -> tuple[None, Looked, list[Cause]]:
        look = looks.pop(0)
        if isinstance(look, BaseException):
            raise look
        return None, Looked((Reading(Layer.FILES),)), look

    monkeypatch.setattr(doctor, "_examined", examined)
    monkeypatch.setattr(doctor, "Watch", partial(Watch, every_s=0))
    assert doctor.watch_doctor("x", None, as_json=True) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["change"] for one in found] == ["found", "unread", "gone", "read", "healthy"]
    assert "Pulumi.x.yaml:3" in found[1]["why"]


def test_a_bundle_is_of_one_look() -> None:
    done = CliRunner().invoke(app, ["doctor", "--watch", "--bundle", "x.json"])
    assert done.exit_code != 0 and "leave out --watch" in done.output
