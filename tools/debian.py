"""Programs for tests from Debian's packages, unpacked into the tools' cache without installing them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from modelfleet.serving.config.errors import SetupError
from tools.cache import once


def unpacked(name: str, packages: Sequence[str]) -> Path:
    """The folder `name` of the cache with the packages' files, downloaded once per machine.

    The version is the one that this machine's Debian has now, and no pin: its servers keep no older one. apt holds what
    it downloads against Debian's signed lists. Raises `SetupError` where `apt-get` is not there or does not get them.
    """

    def unpack(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as downloads:
            _run(["apt-get", "download", "--quiet", *packages], Path(downloads))
            for package in sorted(Path(downloads).glob("*.deb")):
                _run(["dpkg", "-x", str(package), str(folder)], folder)

    return once(name, unpack)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise SetupError(f"{command[0]} is not on PATH; this test's programs need a Debian or Ubuntu") from None
    except subprocess.CalledProcessError as error:
        raise SetupError(f"{' '.join(command)} failed: {error.stderr.strip()}") from error
