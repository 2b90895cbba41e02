"""The benchmark's reports from its measurements."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from tests.waiting import wait_until
from tools.bench import makeup
from tools.bench.load import Outcome
from tools.bench.report import Sample, ratios, rows, table


def sample(target: str, per_second: float, first_s: float, **cpu_ms: float) -> Sample:
    return Sample(target, True, 8, 0, Outcome(per_second, [first_s], 0), cpu_ms)


SAMPLES = [
    sample("alone", 100, 0.010, front=2.0, engine=9.0),
    sample("alone", 50, 0.030, front=4.0, engine=9.0),
    sample("alone", 80, 0.020, front=3.0, engine=9.0),
    sample("fleet", 90, 0.012, front=2.5, gateway=0.5, other=7.0),
    sample("fleet", 40, 0.022, front=3.5, gateway=0.5, other=1.0),
    sample("fleet", 60, 0.032, front=4.5, gateway=0.5, other=1.0),
]


def test_a_row_holds_minimum_median_and_maximum_without_the_engine() -> None:
    alone, fleet = rows(SAMPLES)
    assert alone.per_second == (50, 80, 100)
    assert alone.around_ms == (2.0, 3.0, 4.0)
    assert fleet.around_ms == (3.0, 4.0, 5.0)
    assert fleet.front_ms == 3.5


def test_ratios_are_to_the_baseline_of_the_same_load() -> None:
    other_load = Sample("fleet", False, 1, 0, Outcome(10, [0.1], 0), {})
    against = ratios(rows([*SAMPLES, other_load]), "alone")
    assert list(against) == [("fleet", True, 8)]
    only = against["fleet", True, 8]
    assert only["per_second"] == pytest.approx(0.75)
    assert only["per_second_best"] == pytest.approx(0.9)
    assert only["first_ms_more"] == pytest.approx(2.0)
    assert only["around_ms_more"] == pytest.approx(1.0)


def test_the_table_shows_both_targets_and_their_comparison() -> None:
    text = table(rows(SAMPLES), "alone")
    assert "50.0/80.0/100.0" in text and "against alone: x0.75 req/s, best 0.90" in text


def test_progress_lines_become_steps_and_repeated_waiting_lines_one_step() -> None:
    stamped = [
        (0.0, 0.0, "planning"),
        (2.0, 1.5, "starting Ray (1 s)"),
        (4.0, 3.5, "starting Ray (3 s)"),
        (9.5, 9.0, "model is ready"),
        (10.0, 9.25, "end"),
    ]
    found = makeup.steps(stamped)
    assert [(step.text, step.seconds, step.cpu_seconds) for step in found] == [
        ("planning", 2.0, 1.5),
        ("starting Ray", 7.5, 7.5),
        ("model is ready", 0.5, 0.25),
    ]
    assert "10.0      9.2  together" in makeup.table(found)


def test_cpu_time_counts_what_carries_the_mark_and_nothing_else() -> None:
    burn = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ntime.sleep(60)"
    with makeup.CpuTime() as cpu:
        environment = {**os.environ, makeup.MARK: cpu.mark}
        counted = subprocess.Popen([sys.executable, "-c", burn], env=environment)
        stranger = subprocess.Popen([sys.executable, "-c", burn])
        try:
            wait_until(lambda: sum(psutil.Process(stranger.pid).cpu_times()[:2]) > 0.3, what="the stranger has worked")
            wait_until(lambda: cpu.seconds > 0.3, what="the CPU time of the marked one is seen")
        finally:
            counted.kill(), stranger.kill()
            counted.wait(), stranger.wait()
    assert cpu.seconds < 0.6, "a process without the mark was counted"
