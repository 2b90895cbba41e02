"""The benchmark's reports from its measurements."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from tests.waiting import wait_until
from tools.bench import clients, makeup, processes
from tools.bench.__main__ import turns
from tools.bench.load import Outcome
from tools.bench.report import Idle, Sample, idle_table, paired, ratios, rows, table


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
    burn = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\ntime.sleep(60)"
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
    assert cpu.seconds < 0.9, "a process without the mark was counted"


def test_servers_take_turns_and_every_second_restart_goes_backwards() -> None:
    assert turns(["vllm", "fleet"], 0, together=False) == [["vllm"], ["fleet"]]
    assert turns(["vllm", "fleet"], 1, together=False) == [["fleet"], ["vllm"]]
    assert turns(["vllm", "fleet"], 2, together=True) == [["vllm", "fleet"]]


def test_neighbours_are_compared_round_by_round() -> None:
    def one(target: str, per_second: float, number: int) -> Sample:
        return Sample(target, True, 8, 0, Outcome(per_second, [0.1], 0), {}, number)

    # The machine is half as fast in the second round; the ratio is the same.
    slower = [one("alone", 100, 0), one("fleet", 97, 0), one("alone", 50, 1), one("fleet", 48.5, 1)]
    assert paired(slower, "alone") == {("fleet", True, 8): (0.97, 0.97, 0.97)}


def test_the_99th_percentile_is_of_all_answers_and_compared() -> None:
    def one(target: str, first_s: list[float]) -> Sample:
        return Sample(target, True, 8, 0, Outcome(10, first_s, 0), {})

    found = rows([one("alone", [0.01] * 99 + [0.1, 0.1]), one("fleet", [0.01] * 99), one("fleet", [0.11, 0.11])])
    assert [row.first_p99_ms for row in found] == pytest.approx([100, 110])
    assert ratios(found, "alone")["fleet", True, 8]["first_p99"] == pytest.approx(1.1)
    assert "p99 x1.10" in table(found, "alone")


def test_what_an_idle_server_costs_is_told_by_kind() -> None:
    text = idle_table([Idle("fleet", {"front": 20.0, "GCS": 7.0}), Idle("fleet", {"front": 22.0, "GCS": 9.0})])
    assert text.splitlines()[-1].split() == ["fleet", "29.0", "front", "21.0,", "GCS", "8.0"]


def test_a_raylet_is_told_from_the_agents_that_its_command_line_names() -> None:
    title = "/site/ray/core/src/ray/raylet/raylet --dashboard_agent_command=python ray/dashboard/agent.py"
    assert next(kind for part, kind in processes.KINDS if part in title) == "raylet"


def test_other_clients_reports_become_the_same_figures() -> None:
    guidellm = {
        "benchmarks": [
            {
                "metrics": {
                    "requests_per_second": {"successful": {"mean": 41.5}},
                    "time_to_first_token_ms": {"successful": {"median": 9.0, "percentiles": {"p99": 30.0}}},
                    "request_totals": {"successful": 99, "errored": 1},
                }
            }
        ]
    }
    vllm = {"request_throughput": 41.5, "median_ttft_ms": 9.0, "p99_ttft_ms": 30.0, "failed": 1}
    expected = clients.Result(8, 41.5, 9.0, 30.0, 1)
    assert clients.from_guidellm(guidellm, 8) == expected == clients.from_vllm_bench(vllm, 8)
    line = "| guidellm | vllm serve | 8 | 41.5 | 9.0 | 30.0 | 1 |"
    assert clients.table([("guidellm", "vllm serve", expected)]).splitlines()[-1] == line


def test_what_outlives_a_server_is_ended_with_it() -> None:
    begin = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']).pid)"
    root = subprocess.Popen([sys.executable, "-c", begin], stdout=subprocess.PIPE, start_new_session=True)
    assert root.stdout is not None
    orphan = psutil.Process(int(root.stdout.readline()))
    root.wait()
    processes.Tree(root).end()
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
