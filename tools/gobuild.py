"""Builds the commands of a pinned Go module once per machine.

    folder = build(GoModule("etcd-v3.6.13", ROOT / "tools/kubernetes/modules/etcd",
                            [GoCommand("etcd", "go.etcd.io/etcd/server/v3")]))
    folder / "etcd"

The module's folder holds only `go.mod` and `go.sum`: every version and every hash is pinned there.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelfleet.serving.config.errors import SetupError
from tools.cache import once
from tools.go_toolchain import go_command
from tools.progress import Step, say

_TAIL_LINES = 12


@dataclass(frozen=True)
class GoCommand:
    """One executable: the name to give it, its package and the linker flags (versions)."""

    name: str
    package: str
    ldflags: str = ""
    tags: str = ""
    """Of the build: which parts of the program, separated by commas."""


@dataclass(frozen=True)
class GoModule:
    """What to build from `folder` (go.mod, go.sum) into the cache's folder `name`, such as `pulumi-v3.259.0`."""

    name: str
    folder: Path
    commands: Sequence[GoCommand]
    minutes: str = "a few minutes"
    """How long the build takes on two cores with an empty Go cache, as shown to the user."""
    needed_for: str = "the tools"
    inline: bool = True
    """Without it, two cores are done a fifth sooner, and the program is a little slower: for what only tests run."""


def build(module: GoModule, finish: Callable[[Path], None] = lambda folder: None) -> Path:
    """Returns the folder with the module's executables, which is built if it is not in the cache.

    `finish(folder)` may add files before the folder appears. Raises `SetupError` if Go is missing or the build fails.
    """

    def make(part: Path) -> None:
        go = go_command(module.needed_for)
        say(f"{module.name}: building from Go modules, {module.minutes} the first time")
        for command in module.commands:
            with Step(f"go build {command.name}") as step:
                _run(_command_line(go, command, module, part), module, step)
        finish(part)

    return once(module.name, make, waiting=lambda: say(f"{module.name}: waiting for another run that is building it"))


def _command_line(go: str, command: GoCommand, module: GoModule, part: Path) -> list[str]:
    named = {"-ldflags": command.ldflags, "-tags": command.tags}
    flags = [word for flag, value in named.items() if value for word in (flag, value)]
    # Nobody debugs these programs, and its tables are an eighth of the compiler's time.
    compiler = "all=-dwarf=false" if module.inline else "all=-dwarf=false -l"
    # -v prints each package as it is compiled, which shows progress.
    return [
        go,
        "build",
        "-v",
        "-buildvcs=false",
        "-mod=readonly",
        f"-gcflags={compiler}",
        *flags,
        "-o",
        str(part / command.name),
        command.package,
    ]


def _run(command: list[str], module: GoModule, step: Step) -> None:
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    packages = 0
    process = subprocess.Popen(
        command,
        cwd=module.folder,
        env={**os.environ, "CGO_ENABLED": "0"},  # a static program is a whole image
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line.rstrip())
            packages += 1
            step.detail(f"{packages} lines, {line.strip()[:70]}")
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    if code != 0:
        shown = "\n".join(tail)
        raise SetupError(
            f"go build of {module.name} failed with exit code {code}:\n{shown}\n"
            "Check that the Go proxy can be reached (go env GOPROXY) and 4 GB of disk are free, then run: make tools"
        )


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    timer = threading.Timer(5, process.kill)
    timer.start()
    process.wait()
    timer.cancel()
