"""Every query of rules and panels returns data in a real Prometheus that scrapes what a live stack exported."""

from __future__ import annotations

import http.server
import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml

from modelfleet.infra.observability import dashboards, rule_groups
from modelfleet.infra.planning import Plan
from modelfleet.serving.config.schema import slug_of
from modelfleet.serving.usage_metrics import KINDS
from tests.ports import free_port
from tests.unit.observability.models import KEPT, SCRAPES, queries, scraped_names, watched, with_slo
from tests.waiting import wait_until
from tools.dashboards.__main__ import BROWSERS, Span, draw

COUNTED = re.compile(r"^[a-z_]+_(total|bucket|count|sum)\{")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return watched(with_slo({"ttft_p95_ms": 800, "tpot_p95_ms": 60, "availability": 0.999}, name=KEPT))


class Growing(http.server.BaseHTTPRequestHandler):
    """A kept scrape whose counters grow with each request, as those of a busy stack do."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        text = "".join(self._line(line) for line in (SCRAPES / f"{self.path[1:]}.txt").read_text().splitlines())
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(text.encode())

    def _line(self, line: str) -> str:
        series, _, value = line.rpartition(" ")
        return f"{series} {(float(value) + 1) * self.asked if COUNTED.match(line) else float(value):g}\n"

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def address(prometheus_server: Path, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus with the stack's rules, which scrapes the kept scrapes every second."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Growing) as stack:
        threading.Thread(target=stack.serve_forever, daemon=True).start()
        target = {"targets": [f"127.0.0.1:{stack.server_port}"], "labels": {"namespace": plan.namespace}}
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {"job_name": name, "metrics_path": f"/{name}", "static_configs": [target]}
                for name in ("ray", "gateway")
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "rules.yaml").write_text(yaml.safe_dump(rule_groups(plan)))
        command = [str(prometheus_server), "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}"]
        with (folder / "log").open("w") as log:
            running = subprocess.Popen([*command, "--storage.tsdb.path=data"], cwd=folder, stdout=log, stderr=log)
            try:
                ready = f"http://127.0.0.1:{port}/-/ready"
                wait_until(
                    lambda: requests.get(ready, timeout=5).ok,
                    what="Prometheus is ready",
                    seconds=120,
                    retry=requests.RequestException,
                )
                yield f"http://127.0.0.1:{port}"
            finally:
                running.terminate()
                running.wait(30)
                stack.shutdown()


def test_every_query_returns_numbers(address: str, plan: Plan) -> None:
    """But those of alerts, which are empty where all is well."""
    asked = {where: text for where, text in queries(plan).items() if ": Modelfleet" not in where}

    def empty() -> list[str]:
        return [where for where, text in asked.items() if not _numbers(address, text)]

    wait_until(lambda: not empty(), what=f"all {len(asked)} queries return numbers", seconds=120, every_s=2)
    assert len(asked) > 30


def _numbers(address: str, query: str) -> list[float]:
    text = query.replace("$__rate_interval", "20s")
    answer = requests.get(f"{address}/api/v1/query", params={"query": text}, timeout=10).json()
    assert answer["status"] == "success", (query, answer)
    return [value for one in answer["data"]["result"] if math.isfinite(value := float(one["value"][1]))]


def test_a_live_stack_exported_every_name(plan: Plan) -> None:
    kept = {line.partition("{")[0] for path in SCRAPES.glob("*.txt") for line in path.read_text().splitlines()}
    assert kept == scraped_names(plan)


def test_dashboards_are_json_for_grafana_with_panels_that_do_not_overlap(plan: Plan) -> None:
    made = dashboards(plan)
    assert set(made) == {"fleet.json", "money.json", f"model-{slug_of(KEPT)}.json"}
    assert len({one["uid"] for one in made.values()}) == 3
    for dashboard in made.values():
        assert json.loads(json.dumps(dashboard)) == dashboard
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
        assert len(set(places)) == len(places) and all(panel["targets"] for panel in dashboard["panels"])


@pytest.mark.long(why="npm brings Grafana's components once; tools/dashboards draws docs/dashboard-*.png with them")
def test_grafanas_components_draw_every_panel_with_lines(address: str, plan: Plan, tmp_path: Path) -> None:
    missing = ["npm"] if shutil.which("npm") is None else []
    if not any(map(shutil.which, BROWSERS)):
        missing.append(f"{', '.join(BROWSERS[:-1])} or {BROWSERS[-1]}")
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} on PATH")
    for name, dashboard in dashboards(plan).items():
        span = Span(time.time() - 60, time.time())
        wait_until(
            lambda name=name, dashboard=dashboard, span=span: not draw(name, dashboard, address, span, tmp_path),
            what=f"every query of {name} has lines",
            seconds=240,
        )
        assert (tmp_path / f"dashboard-{name}.png").stat().st_size > 40_000


def test_lines_that_are_told_their_looks_are_lines_of_their_panel(plan: Plan) -> None:
    """A look of a line that is not there changes nothing, and nobody sees it."""
    of_codes = {"1xx", "2xx", "3xx", "4xx", "5xx", "other"}
    for dashboard in dashboards(plan).values():
        for panel in dashboard["panels"]:
            named = {target["legendFormat"] for target in panel["targets"]}
            lines = named | (of_codes if "{{code}}" in named else set())
            lines |= {one.slug for one in plan.models} if "{{application}}" in named else set()
            assert {one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"]} <= lines, panel["title"]


def test_a_last_panel_without_a_neighbour_takes_the_row(plan: Plan) -> None:
    for dashboard in dashboards(plan).values():
        rows: dict[int, int] = {}
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            rows[place["y"]] = rows.get(place["y"], 0) + place["w"]
        assert set(rows.values()) == {24}


def test_no_token_is_twice_in_the_panels_of_tokens(plan: Plan) -> None:
    """Cached prompts are counted as prompts too, and thoughts as completions (`TokenMetrics.count`)."""
    asked = [text for where, text in queries(plan).items() if "Tokens in the last hour" in where]
    assert len(asked) == 3
    for text in asked:
        assert set(re.findall(r'kind="([a-z_]+)"', text)) == {"prompt", "completion"} < KINDS.keys()
        assert text.count("ray_modelfleet_tokens_total") == text.count("kind=") == 2


def test_the_dashboard_of_a_model_draws_its_goals(plan: Plan) -> None:
    drawn = [text for where, text in queries(plan).items() if where.startswith("model-")]
    assert "vector(0.8)" in drawn and "vector(0.06)" in drawn


def test_a_model_that_writes_no_tokens_has_no_panels_of_them() -> None:
    pooling = watched(with_slo({"availability": 0.99}, name=KEPT, engine_kwargs={"runner": "pooling"}))
    titles = {panel["title"] for one in dashboards(pooling).values() for panel in one["panels"]}
    assert not titles & {"First token", "Time per token", "First token, 95th percentile"}
