"""The node's copies of weights: bounded, and what was used longest ago and is not in use goes first.

    use(folder) → bool          whether the copy is there; if so it stays while this process lives
    room(folder, bytes, …)      makes room for a copy: removes others
    finish(partial, folder)     a whole download becomes the copy, in use

    <cache>/<name>/             a copy; its time of change is its last use. Who uses it holds a shared flock on it
    <cache>/<name>.partial/     a download; who fetches holds <name>.lock
    <cache>/<name>.evicted/     what a killed removal left

A folder without <name>.lock beside it is somebody's own: it counts for nothing and stays.
The kernel drops a process's locks however it ends, so a killed replica keeps nothing. Where a file system has no flock
on folders (some network file systems), nothing is removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from modelfleet.serving.errors import WeightsError
from modelfleet.serving.mirror.download import SPARE_BYTES, Report

PARTIAL, EVICTED = ".partial", ".evicted"
#: Held while copies are removed, until the next download has its place, and while one becomes a copy.
EVICTING = ".evicting.lock"
#: Open folders by path: a closed one could be removed.
_in_use: dict[Path, int] = {}


def use(folder: Path) -> bool:
    """Whether the copy is there; it then counts as just used and is not removed while this process lives."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # it is being removed
        os.close(opened)
        return False
    except OSError:
        pass  # no locks here, so nothing is removed either
    if not _still_there(folder, opened):  # it was removed between the two calls
        os.close(opened)
        return False
    with suppress(OSError):
        os.utime(folder)
    if (before := _in_use.pop(folder, None)) is not None:
        os.close(before)
    _in_use[folder] = opened
    return True


@contextmanager
def room(folder: Path, size: int, limit: int | None, report: Report) -> Iterator[None]:
    """Makes room for a copy of `size` bytes at `folder`; the copies together stay below `limit` bytes.

    Removes others, also where the disk itself is too full. The body gives the copy's files their size before the next
    download counts. Raises `WeightsError` when the rest is in use.
    """
    cache = folder.parent
    with FileLock(cache / EVICTING):
        for left in filter(_ours, cache.glob(f"*{EVICTED}")):
            shutil.rmtree(left, ignore_errors=True)
        others = [one for one in _copies(cache) if one.name.removesuffix(PARTIAL) != folder.name]
        sizes = {one: _bytes(one) for one in others}
        own = _allocated(folder.with_name(folder.name + PARTIAL))
        for one in sorted(others, key=_used_at):
            if _fits(cache, sizes, size, limit, size - own):
                break
            if _evict(one):
                report(f"removed {one.name} from this node's cache, {sizes.pop(one) / 1e9:.1f} GB")
        held = sum(sizes.values())
        if limit is not None and held + size > limit:
            raise WeightsError(
                f"{cache} may hold {limit / 1e9:.0f} GB of weights; {held / 1e9:.1f} GB are in use and the model needs "
                f"{size / 1e9:.1f} GB; use nodes with larger disks, or fewer models on this pool"
            )
        yield


def finish(partial: Path, final: Path) -> None:
    """Makes a whole download the copy `final`, and uses it; nobody counts or removes copies meanwhile."""
    with FileLock(final.parent / EVICTING):
        partial.rename(final)
        if not use(final):
            raise WeightsError(f"{final} went while it was made; leave the node's cache to its replicas")


def _fits(cache: Path, sizes: dict[Path, int], size: int, limit: int | None, missing: int) -> bool:
    """Whether a copy of `size` bytes, of which `missing` are not on the disk yet, has room beside the others."""
    if limit is not None and sum(sizes.values()) + size > limit:
        return False
    promised = sum(held - _allocated(one) for one, held in sizes.items() if one.name.endswith(PARTIAL))
    return missing + promised + SPARE_BYTES <= shutil.disk_usage(cache).free


def _copies(cache: Path) -> list[Path]:
    folders = (one for one in cache.iterdir() if one.is_dir() and not one.is_symlink() and one.suffix != EVICTED)
    return [one for one in folders if _ours(one)]


def _ours(folder: Path) -> bool:
    """Whether `node.once` made it: its lock file stays beside it."""
    name = folder.name.removesuffix(EVICTED).removesuffix(PARTIAL)
    return folder.with_name(f"{name}.lock").is_file()


def _evict(folder: Path) -> bool:
    """Removes a copy or a download that nobody uses; False where somebody does. A kill leaves no half copy behind."""
    if folder.name.endswith(PARTIAL):
        try:
            with FileLock(f"{folder.with_name(folder.name.removesuffix(PARTIAL))}.lock", timeout=0):
                return folder.is_dir() and _remove(folder)  # or it became a copy meanwhile
        except Timeout:
            return False
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _still_there(folder, opened) and _remove(folder)
    except OSError:  # in use, or no locks here
        return False
    finally:
        os.close(opened)


def _remove(folder: Path) -> bool:
    gone = folder.with_name(folder.name + EVICTED)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    return True


def _still_there(folder: Path, opened: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False


def _bytes(folder: Path) -> int:
    """The size of its files; those of a download have their full size from the start."""
    return sum(found.st_size for found in _files(folder))


def _allocated(folder: Path) -> int:
    """What its files take on the disk so far."""
    return sum(found.st_blocks * 512 for found in _files(folder))


def _files(folder: Path) -> Iterator[os.stat_result]:
    """Its files, but for those that go meanwhile."""
    with suppress(FileNotFoundError):
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):
                found = path.stat()
                if stat.S_ISREG(found.st_mode):
                    yield found


def _used_at(folder: Path) -> float:
    """When it was last used; 0 for what is gone."""
    with suppress(FileNotFoundError):
        return folder.stat().st_mtime
    return 0.0
