"""Shows where the time of `modelfleet up` goes: its progress lines, each with the seconds until the next.

Beside them is the CPU time of all that the run started, Ray and the engine included: on a shared machine the seconds of
the clock vary threefold, and these by a tenth.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import psutil

HINT = "`--makeup STACK` runs `modelfleet up` and prints its time by step; run `make down` first to start from nothing."
#: The text that a step repeats while it waits: part of the step, not a new one.
WAITED = re.compile(r"\s*[(,]?\s*\d+(\.\d+)?\s*s\)?\.*$")


#: Every process of a run has it in its environment, daemons too.
MARK = "MODELFLEET_BENCH_RUN"
LOOK_EVERY_S = 0.25
#: A process this young may not have started its own program yet, and has its parent's environment.
FORKED_S = 30


@dataclass(frozen=True)
class Step:
    """A progress line, the seconds until the next one, and the CPU seconds that everything took meanwhile."""

    text: str
    seconds: float
    cpu_seconds: float = 0.0


class CpuTime:
    """CPU seconds of all processes with the mark in their environment; what ends between two looks loses a little."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._used: dict[tuple[int, float], float] = {}
        self._strangers: set[tuple[int, float]] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        """Of all of them so far."""
        return sum(list(self._used.values()))

    def _run(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    self._look(process)

    def _look(self, process: psutil.Process) -> None:
        one = (process.pid, process.create_time())
        if one in self._strangers:
            return
        if one not in self._used and process.environ().get(MARK) != self.mark:
            if time.time() - one[1] > FORKED_S:
                self._strangers.add(one)
            return
        self._used[one] = sum(process.cpu_times()[:2])


def measure(stack: str) -> list[Step]:
    """Run `modelfleet up` on the stack and time each line; raises `RuntimeError` if it fails."""
    begun = time.monotonic()
    stamped: list[tuple[float, float, str]] = [(0.0, 0.0, "start of the command, reading and planning")]
    command = [sys.executable, "-m", "modelfleet.cli.main", "up", "--stack", stack]
    with (
        CpuTime() as cpu,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            env={**os.environ, MARK: cpu.mark},
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                stamped.append((time.monotonic() - begun, cpu.seconds, line.rstrip()))
        stamped.append((time.monotonic() - begun, cpu.seconds, "end"))
    if process.returncode:
        said = "\n".join(text for _, _, text in stamped[-25:-1])
        raise RuntimeError(f"modelfleet up ended with exit code {process.returncode}:\n{said}")
    return steps(stamped)


def steps(stamped: Iterable[tuple[float, float, str]]) -> list[Step]:
    """Turn lines with their times, of the clock and of the CPUs, into steps.

    Lines that differ only in the seconds waited are one step.
    """
    found: list[Step] = []
    previous: tuple[float, float, str] | None = None
    for at, cpu, text in stamped:
        name = WAITED.sub("", text.strip())
        if previous is not None:
            step = Step(previous[2], at - previous[0], cpu - previous[1])
            if found and found[-1].text == step.text:
                last = found.pop()
                step = Step(step.text, last.seconds + step.seconds, last.cpu_seconds + step.cpu_seconds)
            found.append(step)
        previous = (at, cpu, name)
    return found


def table(found: Iterable[Step], *, least_s: float = 0.2) -> str:
    """Return the steps of at least `least_s` seconds, and the sum of the others."""
    listed = list(found)
    small = [step for step in listed if step.seconds < least_s]
    rows = [step for step in listed if step.seconds >= least_s]
    rows += [_sum("all other steps", small), _sum("together", listed)]
    load = f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.0f}"
    return "\n".join(
        [
            f"modelfleet up, by step ({load}); seconds of the clock, of the CPUs:",
            *(f"{row.seconds:8.1f} {row.cpu_seconds:8.1f}  {row.text[:110]}" for row in rows),
        ]
    )


def _sum(text: str, parts: Iterable[Step]) -> Step:
    listed = list(parts)
    return Step(text, sum(step.seconds for step in listed), sum(step.cpu_seconds for step in listed))
