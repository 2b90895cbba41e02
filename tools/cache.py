"""The cache that all clones on a machine share: `${XDG_CACHE_HOME:-~/.cache}/modelfleet/tools/<name>`."""

from __future__ import annotations

import errno
import fcntl
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelfleet.serving.config.errors import SetupError
from tools.paths import tools_cache


def once(name: str, make: Callable[[Path], None], *, waiting: Callable[[], None] = lambda: None) -> Path:
    """Returns the cache's folder `name`, which `make(folder)` fills if it does not exist.

    The folder appears whole or not at all, because it is made under another name and renamed. A killed run leaves
    nothing that a later one could take for finished. If two runs start at once, the second waits (`waiting` is called
    once) and uses the first one's folder. Raises `SetupError` if the disk is full or the cache cannot be written.
    """
    target = tools_cache() / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / f".{name}.lock", waiting):
            if not target.is_dir():
                _make(target, make)
    except OSError as error:
        raise _setup_error(target, error) from error
    return target


def forget(name: str) -> None:
    """Removes a broken folder from the cache."""
    shutil.rmtree(tools_cache() / name, ignore_errors=True)


def _make(target: Path, make: Callable[[Path], None]) -> None:
    for leftover in target.parent.glob(f".{target.name}.*.part"):
        shutil.rmtree(leftover, ignore_errors=True)  # from a killed run: we hold the lock, so nobody is using it
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        part.chmod(0o755)
        make(part)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _locked(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.2)
        yield


def _setup_error(target: Path, error: OSError) -> SetupError:
    if error.errno == errno.ENOSPC:
        return SetupError(
            f"no space left on the disk of {target.parent}; free 2 GB or set XDG_CACHE_HOME to a folder "
            "on a larger disk, then run: make tools"
        )
    return SetupError(
        f"cannot write {target.parent}: {error.strerror or error}; set XDG_CACHE_HOME to a writable "
        "folder, then run: make tools"
    )
