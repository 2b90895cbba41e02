"""Replicas on one card start one after the other, whatever becomes of the one before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modelfleet.serving.errors import EngineError
from modelfleet.serving.turns import own_card, turn_on

CARD = "GPU-00000000-0000-0000-0000-000000000001"


def entered(folder: Path, card: str, wait_s: float) -> tuple[threading.Thread, threading.Event]:
    """A second replica that wants its turn on `card`."""
    got = threading.Event()

    def run() -> None:
        with turn_on(card, lambda _: None, folder):
            got.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    got.wait(wait_s)
    return thread, got


def test_the_second_replica_waits_for_the_first_on_the_same_card(tmp_path: Path) -> None:
    with turn_on(CARD, lambda _: None, tmp_path):
        thread, got = entered(tmp_path, CARD, 0.3)
        assert not got.is_set()
    assert got.wait(10)
    thread.join(10)


def test_another_card_is_another_turn(tmp_path: Path) -> None:
    with turn_on(CARD, lambda _: None, tmp_path):
        thread, got = entered(tmp_path, CARD[:-1] + "2", 10)
        assert got.is_set()
        thread.join(10)


def test_a_start_that_fails_ends_its_turn(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), turn_on(CARD, lambda _: None, tmp_path):
        raise RuntimeError("CUDA out of memory")
    thread, got = entered(tmp_path, CARD, 10)
    assert got.is_set()
    thread.join(10)


def test_a_replica_that_is_killed_ends_its_turn(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from modelfleet.serving.turns import turn_on\n"
        "with turn_on(sys.argv[1], print, Path(sys.argv[2])): print('in', flush=True); time.sleep(600)"
    )
    starting = subprocess.Popen([sys.executable, "-c", code, CARD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert starting.stdout is not None
    with starting.stdout:
        assert starting.stdout.readline() == "in\n"
    thread, got = entered(tmp_path, CARD, 0.2)
    assert not got.is_set()
    os.kill(starting.pid, signal.SIGKILL)
    starting.wait()
    assert got.wait(10)
    thread.join(10)


def test_a_process_that_was_forked_in_a_turn_does_not_go_on_with_it(tmp_path: Path) -> None:
    """As vLLM's own: it has the same open file."""
    path = tmp_path / f"modelfleet-{CARD}.lock"
    with turn_on(CARD, lambda _: None, tmp_path):
        (ours,) = [one for one in Path("/proc/self/fd").iterdir() if one.is_symlink() and one.resolve() == path]
        forked = os.dup(int(ours.name))
    try:
        thread, got = entered(tmp_path, CARD, 10)
        assert got.is_set()
        thread.join(10)
    finally:
        os.close(forked)


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / f"modelfleet-{CARD}.lock").symlink_to(tmp_path / "else")
    with pytest.raises(EngineError, match="another user's"), turn_on(CARD, lambda _: None, tmp_path):
        pass
    assert not (tmp_path / "else").exists()


def test_a_card_that_ray_names_by_its_uuid_is_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{CARD},GPU-2")
    assert own_card() == CARD
