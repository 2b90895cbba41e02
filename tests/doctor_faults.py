"""Real faults for `modelfleet doctor`: broken, asked about, mended. `FAULTS` of three files name the rules they prove.

    FAULTS = (Fault("quota-exceeded", "a quota leaves no pod", quota_of_none),)

    @pytest.mark.parametrize("fault", FAULTS, ids=ids(FAULTS))
    def test_the_first_cause_of(fault, live):
        prove(fault, live, live.doctor)

The doctor runs by its own command with all its readers, in this process: loading it anew would take most of the time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from modelfleet.cli import doctor as command
from modelfleet.cli.main import app
from modelfleet.doctor.readers.state import Exported
from modelfleet.infra.kubernetes.manifests.ray import ray_service
from modelfleet.infra.planning import Plan

#: For a fault to show, and for a mended one to go: controllers need a moment each, and minutes on a busy machine.
PATIENCE_S: Final = 180.0
#: What the readers of one look may take together.
LOOK_S: Final = 40.0
EVERY_S: Final = 0.3


@dataclass(frozen=True)
class Fault:
    """A fault of a live stack: the rule that has to come first, what is wrong, and the block in which it is."""

    rule: str
    words: str
    broken: Callable[[Any], AbstractContextManager[object]]
    #: Whose words the doctor reads: `real`, the part itself; `written`, those that its source has, by the real API.
    words_of: str = "real"


@dataclass(frozen=True)
class Answer:
    """What one run of the command said."""

    code: int
    data: Mapping[str, Any]
    #: From its first line to its last; loading the command comes before.
    seconds: float

    @property
    def rules(self) -> list[str]:
        """The causes, the first one first."""
        return [cause["rule"] for cause in self.data["causes"]]

    @property
    def unread(self) -> dict[str, str]:
        """The layers that could not be read, and why."""
        return {one["layer"]: one["unread"] for one in self.data["layers"] if one["unread"] is not None}


@dataclass
class Doctor:
    """The command for a stack; `environ` is added for its clients."""

    root: Path
    stack: str
    environ: Mapping[str, str] = field(default_factory=dict)
    #: What `pulumi stack export` says, for stacks that no Pulumi made; None runs it.
    state: Exported | None = None
    #: What must never be printed.
    secrets: tuple[str, ...] = ()
    #: What its readers may take together.
    seconds: float = LOOK_S
    #: Whether the last answer had nothing to fix.
    well: bool = False

    def __call__(self, *arguments: str, stack: str | None = None) -> Answer:
        """`modelfleet doctor --json`."""
        bundle = self.root / "bundle.json"
        words = ["doctor", "--json", "--stack", stack or self.stack, "--bundle", str(bundle), *arguments]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.root)
            for name, value in self.environ.items():
                patch.setenv(name, value)
            if self.state is not None:
                patch.setattr(command, "export", lambda *_: self.state)
            # The command counts from the start of its process, which is that of all tests here.
            patch.setattr(command, "_seconds_left", lambda: self.seconds)
            began = time.monotonic()
            done = CliRunner().invoke(app, words)
            took = time.monotonic() - began
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        for secret in self.secrets:
            assert secret not in done.output and secret not in bundle.read_text(), "a secret is printed"
        answer = Answer(done.exit_code, json.loads(done.stdout), took)
        self.well = not answer.rules
        return answer


def state_of(plan: Plan) -> Exported:
    """What `pulumi stack export` prints of a stack that was brought up, as far as the doctor reads it."""
    service = {"type": "kubernetes:ray.io/v1:RayService", "inputs": {"spec": ray_service(plan)["spec"]}}
    return Exported(json.dumps({"deployment": {"resources": [service]}}))


def ids(faults: Iterable[Fault]) -> list[str]:
    """The names of their tests: rule, and what is wrong."""
    return [f"{fault.rule}: {fault.words}" for fault in faults]


def healthy(doctor: Doctor, *, seconds: float = PATIENCE_S) -> Answer:
    """The answer once nothing is to be fixed; fails with what is left."""
    return _until(doctor, lambda answer: not answer.rules, "nothing to fix", seconds)


def prove(fault: Fault, live: Any, doctor: Doctor) -> Answer:
    """The answer to a fault; the doctor is silent before it, as after the fault before, and after it."""
    if not doctor.well:
        healthy(doctor)
    with fault.broken(live):
        shown = _until(doctor, lambda answer: answer.rules[:1] == [fault.rule], fault.rule, PATIENCE_S)
        assert shown.code == 1
        first = shown.data["causes"][0]
        assert first["fix"] and first["then"] and first["evidence"]
    healthy(doctor)
    return shown


def _until(doctor: Doctor, well: Callable[[Answer], bool], wanted: str, seconds: float) -> Answer:
    end = time.monotonic() + seconds
    while not well(answer := doctor()):
        assert time.monotonic() < end, f"wanted {wanted}, found {json.dumps(dict(answer.data), indent=1)[:6000]}"
        time.sleep(EVERY_S)
    return answer
