"""A new release of the serving code on live models, under streams that never pause: the real engine, plugin and Ray."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from modelfleet.infra.local.token import headers
from tests.engine.local_stack import LocalStack
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

#: The last of the models has no room for a second replica, so Serve stops the old one first. LONG=1: ten models.
OTHERS = 9 if "LONG" in os.environ else 3
SURGES = {**{f"m{number}": 20 for number in range(OTHERS)}, "tight": 0}
MODELS = tuple(SURGES)


class Clients:
    """One client a model, which streams again and again; and a look at which models have no replica."""

    def __init__(self, stack: LocalStack) -> None:
        self._stack, self._stop = stack, threading.Event()
        self.failed: list[str] = []
        self.answers: list[tuple[str, str]] = []
        """(model, version and process of its replica), each time that a client sees another."""
        self.most_down = 0
        self.looks = 0
        self.threads = [threading.Thread(target=self._ask, args=(name,), daemon=True) for name in MODELS]
        self.threads.append(threading.Thread(target=self._look, daemon=True))

    def _ask(self, name: str) -> None:
        seen = ""
        while not self._stop.is_set():
            try:
                with urllib.request.urlopen(self._url("serve", name), timeout=120) as answer:
                    lines = answer.read().decode().splitlines()
                if lines[-1] != "end" or len(set(lines[:-1])) != 1:
                    self.failed.append(f"{name}: {lines[-2:]}")
                if lines[0] != seen:
                    seen = lines[0]
                    self.answers.append((name, seen))
            except OSError as error:
                self.failed.append(f"{name}: {error!r}")

    def _look(self) -> None:
        while not self._stop.is_set():
            running = self._replicas()
            self.most_down = max(self.most_down, sum(not running[name] for name in MODELS))
            self.looks += 1
            time.sleep(0.1)

    def _replicas(self) -> Mapping[str, int]:
        url, held = self._url("dashboard", "api/serve/applications/"), headers(self._stack.run_folder)
        with urllib.request.urlopen(urllib.request.Request(url, headers=held), timeout=60) as answer:
            found = json.load(answer)["applications"]
        states = {
            name: [r["state"] for d in found[name]["deployments"].values() for r in d["replicas"]] for name in MODELS
        }
        return {name: state.count("RUNNING") for name, state in states.items()}

    def _url(self, port: str, path: str) -> str:
        return f"http://127.0.0.1:{self._stack.ports[port]}/{path}"

    def now(self) -> dict[str, str]:
        """The version and process that last answered for each model."""
        return dict(self.answers)

    def end(self) -> None:
        """Let each finish its stream."""
        self._stop.set()
        for thread in self.threads:
            thread.join(180)
            assert not thread.is_alive(), "a stream has not ended"


@contextmanager
def clients(stack: LocalStack) -> Iterator[Clients]:
    made = Clients(stack)
    for thread in made.threads:
        thread.start()
    try:
        wait_until(lambda: len(made.now()) == len(MODELS), what="an answer of each model", seconds=180)
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    made = LocalStack(tmp_path_factory.mktemp("release"))
    made.light("one", SURGES)
    try:
        made.up("--parallel", "3")  # processes that start at once take longer than one after another
        yield made
    finally:
        made.destroy(check=False)


def test_new_code_goes_model_by_model_and_a_broken_one_stops_at_the_first(stack: LocalStack) -> None:
    with clients(stack) as asking:
        first = asking.now()
        stack.light("two", SURGES)
        stack.up()
        wait_until(lambda: all(one.startswith("two") for one in asking.now().values()), what="new code everywhere")
        order = [name for name, seen in asking.answers if seen.startswith("two")]
        assert sorted(order) == sorted(MODELS), "a model had more than one replica with the new code"
        assert order.index("tight") == OTHERS, order
        second = asking.now()
        assert all(second[name] != first[name] for name in MODELS)

        stack.light("broken", SURGES)
        stopped = stack.up(check=False)
        assert stopped.code != 0
        assert (
            "the new serving code stops at m0: m0 failed to start: RuntimeError: this release has a fault"
            in stopped.text
        )
        assert "m0 has its old code again; m1, m2, " in stopped.text and "Traceback" not in stopped.text
        assert asking.now() == second, "the old replicas serve on"

        stack.light("two", SURGES)
        back = stack.up()
        assert asking.now() == second, f"going back restarts nothing: {back.text}"
    assert asking.failed == []
    assert asking.most_down <= 1 and asking.looks > 20, "two models were down at the same time"
