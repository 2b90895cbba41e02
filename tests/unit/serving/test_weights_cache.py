"""The node's copies of weights: below their limit, the oldest unused one goes first, and what is open stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfleet.serving.errors import WeightsError
from modelfleet.serving.mirror import cache, fetch, fill
from modelfleet.serving.mirror.prefix import fetch_prefix
from tests.waiting import wait_until

MB = 1_000_000
#: A replica of its own: it uses a copy until it is killed.
USER = """
import sys, time
from pathlib import Path
from modelfleet.serving.mirror.cache import use
print(use(Path(sys.argv[1])), flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    yield
    release()


def release() -> None:
    """This process uses no copy any longer, as if it had ended."""
    while cache._in_use:
        os.close(cache._in_use.popitem()[1])


def copy(folder: Path, mb: int, used_at: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(mb * MB))
    os.utime(folder, (used_at, used_at))
    lock(folder)
    return folder


def lock(folder: Path) -> None:
    """What its download leaves beside it."""
    folder.with_name(folder.name.removesuffix(".evicted").removesuffix(".partial") + ".lock").touch()


def room(folder: Path, mb: int, limit_mb: int | None) -> list[str]:
    said: list[str] = []
    with cache.room(folder, mb * MB, None if limit_mb is None else limit_mb * MB, said.append):
        pass
    return said


def names(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir() if one.is_dir()}


def test_the_copy_that_was_used_longest_ago_goes_first_and_no_more_than_needed(tmp_path: Path) -> None:
    for name, used_at in (("b", 100), ("a", 200), ("c", 300)):
        copy(tmp_path / name, 2, used_at)
    said = room(tmp_path / "new", 3, 7)
    assert names(tmp_path) == {"a", "c"} and said == ["removed b from this node's cache, 0.0 GB"]


def test_use_makes_a_copy_the_newest(tmp_path: Path) -> None:
    first, second = copy(tmp_path / "first", 2, 100), copy(tmp_path / "second", 2, 200)
    assert cache.use(first)
    release()
    room(tmp_path / "new", 2, 4)
    assert first.is_dir() and not second.exists()


def test_a_copy_that_another_process_uses_stays_until_that_is_killed(tmp_path: Path) -> None:
    used, newer = copy(tmp_path / "used", 2, 100), copy(tmp_path / "newer", 2, 200)
    user = subprocess.Popen([sys.executable, "-c", USER, str(used)], stdout=subprocess.PIPE, text=True)
    try:
        assert user.stdout is not None and user.stdout.readline() == "True\n"
        os.utime(used, (100, 100))
        room(tmp_path / "new", 2, 4)
        assert used.is_dir() and not newer.exists()
        with pytest.raises(WeightsError, match=r"may hold 0 GB of weights; 0\.0 GB are in use .* fewer models"):
            room(tmp_path / "new", 3, 4)
    finally:
        user.kill()
        user.wait()
    wait_until(lambda: room(tmp_path / "new", 3, 4) and not used.exists(), what="the kernel dropped its lock")


def test_a_copy_that_is_being_removed_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened it before it was renamed would read files that vanish."""
    folder = copy(tmp_path / "one", 1, 100)
    opened = os.open

    def slow(path: Any, *arguments: Any) -> int:
        found = opened(path, *arguments)
        if Path(path) == folder:
            monkeypatch.undo()
            assert cache._evict(folder)
        return found

    monkeypatch.setattr(os, "open", slow)
    assert not cache.use(folder)
    assert not cache.use(folder), "it is gone"


def test_downloads_count_with_their_full_size_and_only_dead_ones_are_removed(tmp_path: Path) -> None:
    partial = tmp_path / "other.partial"
    partial.mkdir()
    lock(partial)
    with (partial / "model.safetensors").open("wb") as stream:
        stream.truncate(5 * MB)
    with cache.FileLock(tmp_path / "other.lock"), pytest.raises(WeightsError, match="in use"):
        room(tmp_path / "new", 2, 6)
    assert partial.is_dir()
    room(tmp_path / "new", 2, 6)
    assert not partial.exists(), "nobody fetches it any longer"


def test_a_download_that_becomes_a_copy_while_it_is_counted_or_removed_is_no_error(tmp_path: Path) -> None:
    """Its own replica failed with FileNotFoundError, or that of the other model."""
    partial = copy(tmp_path / "other.partial", 1, 100)
    counted = cache._files(partial)
    assert next(counted).st_size == MB
    cache.finish(partial, tmp_path / "other")
    assert list(counted) == [] and cache._bytes(partial) == cache._allocated(partial) == cache._used_at(partial) == 0
    assert cache._evict(partial) is False and (tmp_path / "other").is_dir()


def test_no_download_becomes_a_copy_while_copies_are_counted(tmp_path: Path) -> None:
    partial, final = copy(tmp_path / "other.partial", 1, 100), tmp_path / "other"
    finishing = threading.Thread(target=cache.finish, args=(partial, final))
    with cache.FileLock(tmp_path / cache.EVICTING):
        finishing.start()
        finishing.join(0.3)
        assert partial.is_dir() and not final.exists()
    finishing.join(20)
    assert final in cache._in_use, "it is in use before another may remove it"


def test_what_a_killed_removal_left_is_removed(tmp_path: Path) -> None:
    copy(tmp_path / "old.evicted", 1, 100)
    room(tmp_path / "new", 1, None)
    assert names(tmp_path) == set()


def test_folders_of_somebody_else_count_for_nothing_and_stay(tmp_path: Path) -> None:
    """MODELFLEET_MODEL_CACHE may name a folder that holds more than the cache."""
    for name in ("my-photos", "my-photos.partial", "my-photos.evicted"):
        copy(tmp_path / name, 2, 100)
    (tmp_path / "my-photos.lock").unlink()
    copy(tmp_path / "ours", 2, 200)
    room(tmp_path / "new", 2, 2)
    assert names(tmp_path) == {"my-photos", "my-photos.partial", "my-photos.evicted"}


def test_a_full_disk_removes_copies_without_any_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(tmp_path / "old", 2, 100), copy(tmp_path / "young", 2, 200)

    class Usage:
        @property
        def free(self) -> int:
            return 4 * MB + cache.SPARE_BYTES - sum(cache._bytes(one) for one in tmp_path.iterdir() if one.is_dir())

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage())
    room(tmp_path / "new", 2, None)
    assert names(tmp_path) == {"young"}


def test_a_fetch_replaces_old_weights_and_keeps_those_that_this_process_uses(s3: Any, tmp_path: Path) -> None:
    folders = []
    for number in range(3):
        model = tmp_path / f"model{number}"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(bytes([number]) * 6 * MB)
        fill(model, f"s3://fleet/models/m{number}", model_id=f"m{number}", source="x")
        folders.append(fetch(f"s3://fleet/models/m{number}", tmp_path / "cache", limit=13 * MB))
        if number == 0:
            release()
    assert [folder.is_dir() for folder in folders] == [False, True, True]
    with pytest.raises(WeightsError, match="fewer models on this pool"):
        fetch("s3://fleet/models/m0", tmp_path / "cache", limit=13 * MB)
    release()
    s3.put_object(Bucket="fleet", Key="theirs/config.json", Body=bytes(8 * MB))
    assert fetch_prefix("s3://fleet/theirs", tmp_path / "cache", limit=13 * MB).is_dir()
    assert [folder.is_dir() for folder in folders] == [False, False, False]
