"""Shows where the time of `modelfleet up` goes: its progress lines, each with the seconds until the next."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

HINT = "`--makeup STACK` runs `modelfleet up` and prints its time by step; run `make down` first to start from nothing."
#: The text that a step repeats while it waits: part of the step, not a new one.
WAITED = re.compile(r"\s*[(,]?\s*\d+(\.\d+)?\s*s\)?\.*$")


@dataclass(frozen=True)
class Step:
    """A progress line, and the seconds until the next one."""

    text: str
    seconds: float


def measure(stack: str) -> list[Step]:
    """Run `modelfleet up` on the stack and time each line; raises `RuntimeError` if it fails."""
    begun = time.monotonic()
    stamped: list[tuple[float, str]] = [(0.0, "start of the command, reading and planning")]
    command = [sys.executable, "-m", "modelfleet.cli.main", "up", "--stack", stack]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                stamped.append((time.monotonic() - begun, line.rstrip()))
    stamped.append((time.monotonic() - begun, "end"))
    if process.returncode:
        raise RuntimeError(f"modelfleet up ended with exit code {process.returncode}: {stamped[-2][1]}")
    return steps(stamped)


def steps(stamped: Iterable[tuple[float, str]]) -> list[Step]:
    """Turn lines with their arrival times into steps; lines that differ only in the seconds waited are one step."""
    found: list[Step] = []
    previous: tuple[float, str] | None = None
    for at, text in stamped:
        name = WAITED.sub("", text.strip())
        if previous is not None:
            step = Step(previous[1], at - previous[0])
            if found and found[-1].text == step.text:
                found[-1] = Step(step.text, found[-1].seconds + step.seconds)
            else:
                found.append(step)
        previous = (at, name)
    return found


def table(found: Iterable[Step], *, least_s: float = 0.2) -> str:
    """Return the steps of at least `least_s` seconds, and the sum of the others."""
    listed = list(found)
    shown = [f"{step.seconds:8.1f} s  {step.text[:110]}" for step in listed if step.seconds >= least_s]
    small = sum(step.seconds for step in listed if step.seconds < least_s)
    total = sum(step.seconds for step in listed)
    return "\n".join(
        ["modelfleet up, by step:", *shown, f"{small:8.1f} s  all other steps", f"{total:8.1f} s  together"]
    )
