"""Locks of a killed `pulumi`: removed only when the process has certainly ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfleet.cli.pulumi_lock import clear_dead_locks, locks
from tests.engine.conftest import write_lock


@pytest.fixture
def pulumi_process(tmp_path: Path) -> Iterator[int]:
    """A living process whose program is called pulumi."""
    program = tmp_path / "pulumi"
    shutil.copy(str(shutil.which("sleep")), program)
    process = subprocess.Popen([str(program), "60"])
    yield process.pid
    process.kill()
    process.wait()


def backend(folder: Path) -> str:
    return f"file://{folder}"


def test_the_lock_of_a_dead_process_goes(tmp_path: Path) -> None:
    lock = write_lock(tmp_path, project="p", stack="local")
    assert [cleared.stack for cleared in clear_dead_locks(backend(tmp_path))] == ["local"]
    assert not lock.exists()


def test_the_lock_of_a_living_pulumi_stays(tmp_path: Path, pulumi_process: int) -> None:
    """`pulumi cancel` would delete it, and two runs would write one state."""
    lock = write_lock(tmp_path, project="p", stack="local", pid=pulumi_process)
    assert clear_dead_locks(backend(tmp_path)) == []
    assert lock.exists()


def test_the_lock_of_another_machine_stays(tmp_path: Path) -> None:
    lock = write_lock(tmp_path, project="p", stack="local", host="another-machine")
    assert clear_dead_locks(backend(tmp_path)) == []
    assert lock.exists()


def test_a_pid_that_another_program_has_now_does_not_keep_the_lock(tmp_path: Path) -> None:
    write_lock(tmp_path, project="p", stack="local", pid=os.getpid())
    assert len(clear_dead_locks(backend(tmp_path))) == 1, "this test's own process is not a pulumi"


def test_a_pid_that_a_later_pulumi_has_now_does_not_keep_the_lock(tmp_path: Path, pulumi_process: int) -> None:
    lock = write_lock(tmp_path, project="p", stack="local", pid=pulumi_process)
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "timestamp": "2020-01-01T00:00:00.123456789+02:00"}))
    assert len(clear_dead_locks(backend(tmp_path))) == 1


def test_a_lock_that_was_cut_off_while_it_was_written_goes(tmp_path: Path) -> None:
    lock = write_lock(tmp_path, project="p", stack="local")
    lock.write_text('{"pid": 12')
    assert len(clear_dead_locks(backend(tmp_path))) == 1


def test_an_empty_attributes_file_of_a_killed_write_goes_unless_a_run_lives(
    tmp_path: Path, pulumi_process: int
) -> None:
    """Pulumi would stop with "failed to load checkpoint: EOF"."""
    stacks = tmp_path / ".pulumi" / "stacks" / "modelfleet"
    stacks.mkdir(parents=True)
    empty, whole = stacks / "test.json.attrs", stacks / "other.json.attrs"
    empty.touch()
    whole.write_text("{}")
    clear_dead_locks(f"file://{tmp_path}")
    assert (empty.exists(), whole.exists()) == (False, True)
    empty.touch()
    write_lock(tmp_path, project="modelfleet", stack="test", pid=pulumi_process)
    clear_dead_locks(f"file://{tmp_path}")
    assert empty.exists(), "a living run may be writing it"


def test_an_empty_attributes_file_of_another_stack_stays(tmp_path: Path) -> None:
    """A run of that stack may be writing it, and only the locks of this one were read."""
    other = tmp_path / ".pulumi" / "stacks" / "modelfleet" / "other.json.attrs"
    other.parent.mkdir(parents=True)
    other.touch()
    clear_dead_locks(f"file://{tmp_path}", "test")
    assert other.exists()


def test_other_stacks_and_other_backends_are_left_alone(tmp_path: Path) -> None:
    other = write_lock(tmp_path, project="p", stack="other")
    assert clear_dead_locks(backend(tmp_path), "local") == []
    assert other.exists()
    assert locks("s3://bucket/state") == []
    assert locks(backend(tmp_path / "absent")) == []
