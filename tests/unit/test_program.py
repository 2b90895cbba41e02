"""What the Pulumi program asks the engine before it plans."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pulumi
import pytest

from modelfleet.infra import program

EMPTY = "invoke of pulumi:pulumi:readStackOutputs failed: invocation returned an error: failed to load checkpoint: EOF"


class Engine:
    """Refuses the first reads of the state, each with the given words."""

    def __init__(self, *refusals: str) -> None:
        self.refusals = list(refusals)
        self.reads = 0

    def invoke(self, token: str, arguments: dict[str, Any]) -> SimpleNamespace:
        assert (token, arguments) == ("pulumi:pulumi:readStackOutputs", {"name": "organization/fleet/dev"})
        self.reads += 1
        if self.refusals:
            raise Exception(self.refusals.pop(0))  # what pulumi.runtime.invoke raises
        return SimpleNamespace(value={"outputs": {program.VERSION: "0.1.0"}})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "READ_AGAIN_S", (0.0,) * len(program.READ_AGAIN_S))


def test_a_state_that_is_being_written_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(EMPTY, EMPTY)
    monkeypatch.setattr(pulumi.runtime, "invoke", engine.invoke)
    assert program._outputs("organization/fleet/dev") == {program.VERSION: "0.1.0"}
    assert engine.reads == 3


def test_a_state_that_stays_unreadable_is_the_engines_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(*[EMPTY] * 9)
    monkeypatch.setattr(pulumi.runtime, "invoke", engine.invoke)
    with pytest.raises(Exception, match="failed to load checkpoint"):
        program._outputs("organization/fleet/dev")


def test_any_other_error_of_the_engine_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine("passphrase must be set")
    monkeypatch.setattr(pulumi.runtime, "invoke", engine.invoke)
    with pytest.raises(Exception, match="passphrase"):
        program._outputs("organization/fleet/dev")
    assert engine.reads == 1
