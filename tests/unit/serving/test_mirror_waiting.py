"""An application waits for its own mirror while that is being filled, and for no other mirror."""

from __future__ import annotations

import itertools

import pytest

from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror.read import Status
from modelfleet.serving.mirror.waiting import WAIT, wait_until_complete


def test_it_waits_until_the_mirror_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT, "60")
    states = iter([Status.ABSENT, Status.DAMAGED, Status.COMPLETE])
    slept: list[float] = []
    wait_until_complete("s3://b/m", look=lambda uri: next(states), sleep=slept.append)
    assert len(slept) == 2


def test_it_gives_up_with_the_command_that_shows_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT, "7")
    now = itertools.count(0.0, 5.0)
    monkeypatch.setattr("modelfleet.serving.mirror.waiting.time.monotonic", lambda: next(now))
    with pytest.raises(MirrorError, match=r"s3://b/m is absent after 7 s; .* kubectl -n NAMESPACE-mirror logs"):
        wait_until_complete("s3://b/m", look=lambda uri: Status.ABSENT, sleep=lambda s: None)


def test_without_the_variable_it_does_not_check_the_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WAIT, raising=False)
    wait_until_complete("s3://b/m", look=lambda uri: pytest.fail("it checked the mirror"))
