"""How long the local target waits for a replica that starts, as long as it does something new, and for Ray's dashboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.local import fleet
from modelfleet.infra.local.provider import application, progress, release
from modelfleet.infra.local.provider.application import NotReady
from modelfleet.infra.local.provider.progress import Progress
from modelfleet.infra.local.provider.serve_api import ServeApi, Unreachable
from modelfleet.infra.provider import Call
from tests.unit.listener import listening


class Clock:
    """Time that passes by a minute with each look at Serve."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += 60


class Serve:
    """Serve with an application that starts for ever; its message is the next of `lines`."""

    def __init__(self, lines: Iterator[str], running_after: int) -> None:
        self.lines, self.left = lines, running_after

    def application(self, name: str) -> dict[str, Any]:
        self.left -= 1
        return {"status": "RUNNING" if self.left < 0 else "DEPLOYING", "message": next(self.lines)}


def wait(lines: Iterator[str], monkeypatch: pytest.MonkeyPatch, limit_s: float | None = None) -> float:
    clock = Clock()
    monkeypatch.setattr(application, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    serve: Any = Serve(lines, running_after=90)
    application.wait_until_running(serve, "org--model", Progress(lambda line: None), Path("/nowhere"), limit_s)
    return clock.now


def downloading() -> Iterator[str]:
    return (f"{number} of 90 files" for number in range(91))


def still() -> Iterator[str]:
    while True:
        yield "loading"


def test_a_start_that_does_something_new_may_take_longer_than_half_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first start of a large model downloads for an hour, and was given up after 1800 s."""
    assert wait(downloading(), monkeypatch) == 90 * 60


def test_a_start_that_does_nothing_new_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotReady, match="org--model did nothing new for 1800 s: loading"):
        wait(still(), monkeypatch)


def test_a_limit_of_the_resource_is_one_for_the_whole_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotReady, match="was not ready after 600 s"):
        wait(downloading(), monkeypatch, limit_s=600)


class Busy:
    """A dashboard that answers from its `answers_at`th call on."""

    def __init__(self, answers_at: int) -> None:
        self.left = answers_at

    def details(self) -> dict[str, Any]:
        self.left -= 1
        if self.left > 0:
            raise Unreachable("it is busy")
        return {"applications": {"org--a": {"status": "RUNNING", "deployed_app_config": {"name": "org--a"}}}}


def live(api: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = Clock()
    monkeypatch.setattr(release, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    return release._Serve(api, Path("/nowhere"), Progress(lambda line: None), 0, release.PATIENCE_S)


def test_a_release_waits_for_a_busy_dashboard_and_does_not_take_it_for_an_empty_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With nothing live the release ended at once, and all applications took the new code together."""
    assert set(live(Busy(2), monkeypatch).configs()) == {"org--a"}
    with pytest.raises(Unreachable):
        live(Busy(99), monkeypatch).configs()


def test_a_refresh_without_ray_keeps_the_release_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "serve_api", lambda state: Busy(99))
    state = {"configs": "[]", "code": "x", "folder": "/nowhere"}
    assert release.read(Call({}, "urn", "release", "token", 0, print), "release", state) == state


@pytest.mark.parametrize(("answer", "status"), [("no", 200), ([], 200), ({}, 404), ({}, 500)])
def test_a_preview_takes_another_service_at_rays_port_for_no_applications(
    answer: Any, status: int, tmp_path: Path
) -> None:
    with listening(answer, status=status) as other:
        assert fleet._live(ServeApi(other.url(), 8000, tmp_path)) == {}
