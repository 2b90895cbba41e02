"""What killed replicas leave in /dev/shm is removed by the next one, and nothing else is."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfleet.serving.shared_memory import note, remove_left

#: Maps a file in the folder, notes it, says so, and waits to be killed.
REPLICA = """
import mmap, sys, time
from pathlib import Path
from modelfleet.serving.shared_memory import note
folder = Path(sys.argv[1])
with open(folder / sys.argv[2], "w+b") as file:
    file.truncate(4096)
    mapped = mmap.mmap(file.fileno(), 4096)
note(folder)
print("noted", flush=True)
time.sleep(600)
"""


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", REPLICA, str(tmp_path), "psm_of_replica"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "noted\n"
        yield process
        process.kill()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("modelfleet-")}


def test_what_a_killed_replica_shared_is_removed_by_the_next(tmp_path: Path, replica: subprocess.Popen[str]) -> None:
    """Else each one that is killed takes its pod's memory until the pod ends."""
    (tmp_path / "psm_of_others").touch()
    assert remove_left(tmp_path) == [], "it runs"
    replica.kill()
    replica.wait()
    assert remove_left(tmp_path) == ["psm_of_replica"]
    assert [path.name for path in tmp_path.iterdir()] == ["psm_of_others"], "nothing of the dead one, all of others"


def test_another_process_with_the_same_number_is_not_the_replica(tmp_path: Path) -> None:
    (tmp_path / "psm_old").touch()
    (tmp_path / f"modelfleet-{os.getppid()}-1").write_text("psm_old")
    assert remove_left(tmp_path) == ["psm_old"]


def test_a_note_names_files_of_the_folder_only(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.touch()
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm/modelfleet-1-1").write_text("../outside")
    remove_left(tmp_path / "shm")
    assert outside.exists()


def test_rays_object_store_and_removed_files_are_not_noted(tmp_path: Path) -> None:
    mapped = []
    for name in ("plasmaXYZ", "psm_gone", "psm_here"):
        with (tmp_path / name).open("w+b") as file:
            file.truncate(mmap.PAGESIZE)
            mapped.append(mmap.mmap(file.fileno(), mmap.PAGESIZE))
    (tmp_path / "psm_gone").unlink()
    note(tmp_path)
    assert remove_left(tmp_path) == ["psm_here"], "its own, at its end"
    assert names(tmp_path) == {"plasmaXYZ"}
