"""What killed replicas leave in /dev/shm is removed by the next one, and nothing else is."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfleet.serving.shared_memory import FOLDER, note, remove_left

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


#: One start of a replica, without vLLM: it removes what others left, as `VllmReplica` does before its engine starts,
#: shares memory as vLLM's broadcast from the engine to its workers does (`SharedMemory`, so the name is Python's own in
#: the real /dev/shm, and each process of its keeps it mapped), notes it, and waits to be killed. Python's resource
#: tracker, which outlives it and would remove the file, is killed with it, as with a pod or by Ray.
START = """
import multiprocessing, os, signal, sys, time
from multiprocessing import resource_tracker, shared_memory
from modelfleet.serving.shared_memory import note, remove_left
remove_left()
own = shared_memory.SharedMemory(create=True, size=4096)
reader, writer = os.pipe()
if (worker := os.fork()) == 0:
    block = shared_memory.SharedMemory(create=True, size=4096)
    os.write(writer, block.name.encode())
    time.sleep(600)
theirs = os.read(reader, 100).decode()
note()
print(own.name, theirs, worker, resource_tracker._resource_tracker._pid, flush=True)
time.sleep(600)
"""
STARTS = 50


def start() -> tuple[set[str], subprocess.Popen[str], list[int]]:
    """A light replica that has noted its files: their names, the process, and those that it started."""
    process = subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    *shared, worker, tracker = process.stdout.readline().split()
    return set(shared), process, [int(worker), int(tracker)]


def kill(process: subprocess.Popen[str], others: list[int]) -> None:
    """SIGKILL for all, the tracker first: it would clean up after the others."""
    for pid in reversed(others):
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.communicate()


@pytest.mark.timeout(240)
def test_after_fifty_starts_that_were_killed_nothing_is_left_in_dev_shm() -> None:
    """At no time is there more than the last killed one left, and after the next start nothing of all before it."""
    all_names: set[str] = set()
    most = 0
    try:
        for number in range(STARTS):
            shared, process, others = start()
            kill(process, others)
            assert len(shared) == 2 and not shared & all_names
            all_names |= shared
            left = {name for name in all_names if (FOLDER / name).exists()}
            # Another replica that starts on this machine meanwhile may have removed them: never more.
            assert left <= shared, f"after start {number}: {left - shared} of earlier ones"
            most = max(most, len(left))
        assert most == 2, "who is killed leaves its file and its worker's, or this shows nothing"
        remove_left()
        assert not [name for name in all_names if (FOLDER / name).exists()]
        assert not [one for one in FOLDER.glob("modelfleet-*") if set(one.read_text().split()) & all_names]
    finally:
        for name in all_names:
            (FOLDER / name).unlink(missing_ok=True)


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
