"""`modelfleet top`: its arithmetic against the real promtool, its rows from what a live stack exported, its readers."""

from __future__ import annotations

import fcntl
import http.server
import json
import math
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from modelfleet.cli import metrics_pages
from modelfleet.cli.top import run_top
from modelfleet.infra.names import POOL_LABEL
from modelfleet.infra.observability.samples import Between, Look, Page, quantile, samples
from modelfleet.infra.observability.top import CARD_FREE, CARD_USED, HEALTHY, names, page
from modelfleet.infra.planning import Plan
from modelfleet.serving.config.errors import SetupError
from tests.cluster.fleet import model, write_project
from tests.ports import free_ports
from tests.unit.observability.models import KEPT, TOP, watched, with_keys, with_slo
from tools.paths import ROOT

#: Cumulative counts by upper bound, as `le` writes it.
HISTOGRAMS: list[dict[str, float]] = [
    {"0.1": 0, "0.5": 10, "1.0": 10, "+Inf": 10},
    {"0.1": 3, "0.5": 4, "1.0": 18, "+Inf": 20},
    {"0.1": 0, "0.5": 0, "1.0": 1, "+Inf": 40},
    {"0.25": 7, "+Inf": 7},
]


def test_quantiles_are_those_of_the_real_prometheus(promtool: Path, tmp_path: Path) -> None:
    shares = (0.5, 0.95, 1.0)
    counts = [
        (f'h_bucket{{case="{case}",le="{le}"}}', count)
        for case, one in enumerate(HISTOGRAMS)
        for le, count in one.items()
    ]
    ours = [
        (f'ours{{case="{case}",share="{share}"}}', quantile(share, {float(le): n for le, n in one.items()}))
        for case, one in enumerate(HISTOGRAMS)
        for share in shares
    ]
    series = [{"series": name, "values": repr(value)} for name, value in (*counts, *ours)]
    expected = [
        {
            "expr": f'count(abs(histogram_quantile({share}, h_bucket) - on (case) ours{{share="{share}"}}) < 1e-9)',
            "eval_time": "0m",
            "exp_samples": [{"labels": "{}", "value": len(HISTOGRAMS)}],
        }
        for share in shares
    ]
    case = {"interval": "1m", "input_series": series, "promql_expr_test": expected}
    (tmp_path / "case.yaml").write_text(yaml.safe_dump({"tests": [case]}))
    done = subprocess.run([promtool, "test", "rules", "case.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_histogram_of_nothing_has_no_quantile() -> None:
    assert quantile(0.5, {0.1: 0, math.inf: 0}) is None and quantile(0.5, {}) is None


HOSTILE = (
    'tokens_total{key="a\\"b}\\\\c\\nd",kind="x,y="} 7\nbare 1.5 1700000000\n# HELP bare x\nbroken{\nnot_a_number x\n'
)


def test_a_page_is_read_as_prometheus_client_reads_it() -> None:
    text = HOSTILE.replace("broken{\nnot_a_number x\n", "")
    theirs = {
        (one.name, tuple(sorted(one.labels.items())), one.value)
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }
    read = samples(Page("p", HOSTILE), frozenset({"tokens_total", "bare", "broken", "not_a_number"}))
    assert {(one.name, tuple(sorted(one.labels.items())), one.value) for one in read} == theirs
    assert len(theirs) == 2


def test_a_counter_that_began_again_and_a_series_that_is_new_count_and_a_page_that_is_new_does_not() -> None:
    before = Look(0, (Page("a", 'n_total{r="1"} 100\n'),))
    after = Look(10, (Page("a", 'n_total{r="1"} 30\nn_total{r="2"} 5\n'), Page("b", 'n_total{r="3"} 900\n')))
    between = Between(before, after, {"n_total"})
    assert between.increase("n_total") == 35 and between.rate("n_total") == 3.5
    assert between.increase("n_total", r="2") == 5
    assert Between(after, after, {"n_total"}).rate("n_total") == 0.0


@pytest.fixture(scope="module")
def plan() -> Plan:
    return with_keys(watched(with_slo(None, name=KEPT)))


def recorded(moment: str) -> tuple[Page, ...]:
    """What a live stack said (`SCRAPES=write`, tests/serving/test_api.py), 20 s apart."""
    pages = sorted(TOP.glob(f"{moment}-*.txt"))
    assert len(pages) == 3
    return tuple(
        Page(path.stem.partition("-")[2], path.read_text(), ("l4",) if path.stem.endswith("ray") else ())
        for path in pages
    )


def test_rows_of_a_live_stack(plan: Plan) -> None:
    now = page(plan, Look(100.0, recorded("before")), Look(120.0, recorded("after")))
    (one,), (pool,), (key,) = now.models, now.pools, now.keys
    assert (one.model, one.replicas, one.running, one.waiting) == (KEPT, 1, 0, 0)
    # Five requests of 40 tokens each, between the looks.
    assert one.written_per_s == 10.0 and key.written_per_s == 10.0
    assert one.read_per_s == key.read_per_s > 0
    assert key.asked_per_s == 0.25 and key.open == 0
    for found in (one.first_token, one.per_token):
        assert found.p50_s is not None and found.p95_s is not None and 0 < found.p50_s <= found.p95_s < 10
    assert one.prefix_hits is not None and 0 <= one.prefix_hits <= 1 and one.gpu_gib is None
    assert pool.nodes == 1 and pool.usd_per_hour == now.usd_per_hour == pool.usd_per_node_hour == one.usd_per_hour
    written = json.loads(json.dumps(now.as_json(), allow_nan=False))
    assert written["models"][0]["first_token"]["p95_s"] == one.first_token.p95_s


def test_clients_without_keys_are_none() -> None:
    """The gateway then counts by address, in the same table."""
    now = page(watched(with_slo(None, name=KEPT)), Look(100.0, recorded("before")), Look(120.0, recorded("after")))
    assert now.keys == () and now.models[0].written_per_s == 10.0


def test_a_quiet_stack_has_rates_of_zero_and_no_latencies(plan: Plan) -> None:
    (one,) = page(plan, Look(0, recorded("after")), Look(5, recorded("after"))).models
    assert one.written_per_s == 0 and one.first_token.p50_s is None and one.prefix_hits is None


def test_cards_are_those_of_the_nodes_where_replicas_run_and_a_queue_in_the_gateway_waits_too(plan: Plan) -> None:
    (slug,) = [one.slug for one in plan.models]
    here = f'ray_vllm_num_requests_running{{application="{slug}"}} 3\nray_vllm_num_requests_waiting{{application="{slug}"}} 2\n'
    cards = "".join(f'{CARD_USED}{{GpuIndex="{n}"}} 2048\n{CARD_FREE}{{GpuIndex="{n}"}} 1024\n' for n in (0, 1))
    text = f'{here}{cards}{HEALTHY}{{application="{slug}"}} 1\n'
    queue = Page("gateway", f'haproxy_backend_current_queue{{proxy="model.{slug}"}} 4\n')
    look = Look(0, (Page("a", text, ("l4",)), Page("b", cards, ("l4",)), Page("head", ""), queue), ("c: refused",))
    now = page(plan, look, look)
    (one,), (pool,) = now.models, now.pools
    assert (one.running, one.waiting, one.gpu_gib, one.gpu_total_gib) == (3, 6, 4, 6)
    assert (pool.nodes, pool.gpu_gib, pool.gpu_total_gib) == (2, 8, 12) and now.unread == ("c: refused",)
    assert now.usd_per_hour == pytest.approx(2 * 0.9776)


def test_an_unknown_price_is_none_and_never_zero(plan: Plan) -> None:
    dear = replace(plan, pools=(replace(plan.pools[0], usd_per_node_hour=None),))
    assert page(dear, Look(0, ()), Look(0, ())).usd_per_hour is None


def test_every_name_is_on_a_recorded_page_but_those_of_cards() -> None:
    """A name that nobody exports would be a row of dashes for ever."""
    found = {line.partition("{")[0] for one in recorded("after") for line in one.text.splitlines()}
    assert names() - found == {CARD_USED, CARD_FREE}


class Live(http.server.BaseHTTPRequestHandler):
    """The recorded pages, the earlier ones first."""

    asked: Mapping[str, int] = {}

    def do_GET(self) -> None:
        kind = {"/metrics": "gateway", "/metrics/keys": "keys"}[self.path]
        kind = "ray" if self.server.server_address[1] == self.server.ray_port else kind  # type: ignore[attr-defined]
        moment = "after" if self.asked.get(kind) else "before"
        type(self).asked = {**self.asked, kind: 1}
        body = (TOP / f"{moment}-{kind}.txt").read_bytes()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """A local stack's project whose two metrics ports answer with the recorded pages; gives the ports."""
    ray, gateway = free_ports(2)
    ports = {"rayMetricsPort": ray, "metricsPort": gateway}
    pool = {"name": "cpu", "accelerator": "CPU", "maxNodes": 1}
    write_project(tmp_path, [model(KEPT, "CPU")], target="local", pools=[pool], local=ports, auth="keys")
    monkeypatch.chdir(tmp_path)
    Live.asked = {}
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", port), Live) for port in (ray, gateway)]
    for one in servers:
        one.ray_port = ray  # type: ignore[attr-defined]
        threading.Thread(target=one.serve_forever, daemon=True).start()
    yield ports
    for one in servers:
        one.shutdown()
        one.server_close()


@pytest.mark.usefixtures("served")
def test_the_command_prints_one_object_with_the_models_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_top("dev", as_json=True, window=1) == 0
    said = json.loads(capsys.readouterr().out)
    (one,) = said["models"]
    assert one["model"] == KEPT and one["written_per_s"] == pytest.approx(200 / said["seconds"])
    assert said["pools"] == [{**said["pools"][0], "pool": "cpu", "nodes": 1}] and said["unread"] == []
    assert said["keys"][0]["key"] == "tester"


@pytest.mark.usefixtures("served")
def test_in_a_pipe_it_prints_one_table_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_top("dev", window=1) == 0
    said = capsys.readouterr()
    row = next(line.split() for line in said.out.splitlines() if KEPT in line)
    assert row[1] == "1/1" and "\x1b" not in said.out
    assert "tester" in said.out and "USD" not in said.out and "GiB" not in said.out, (
        "nothing costs, and there is no card"
    )
    assert "looking at dev for 1 s" in said.err


@pytest.mark.usefixtures("served")
def test_on_a_terminal_it_draws_again_and_again_until_ctrl_c() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    command = [sys.executable, "-m", "modelfleet.cli.main", "top", "--stack", "dev"]
    size = ("COLUMNS", "LINES")  # they would win over the terminal's own size
    environment = {name: value for name, value in os.environ.items() if name not in size}
    environment |= {"TERM": "xterm", "PYTHONPATH": str(ROOT)}
    # A shell's background jobs ignore SIGINT, and so would what they start.
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    streams: Any = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(command, **streams, env=environment, preexec_fn=default)  # noqa: PLW1509  it takes no lock
    os.close(theirs)
    seen = b""
    while (waiting := re.search(rb"the last [1-9]\d* s", seen)) is None:  # the first page has no time behind it
        assert select.select([ours], [], [], 60)[0], seen
        seen += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)  # as the terminal does to its foreground process
    while True:
        assert select.select([ours], [], [], 60)[0], seen
        try:
            seen += os.read(ours, 65536)
        except OSError:  # Linux ends a terminal that nobody holds any more with EIO
            break
    assert process.wait(30) == 0 and waiting and KEPT.encode() in seen and b"Traceback" not in seen
    assert b"\x1b[?1049h" in seen and b"\x1b[?1049l" in seen, "the screen that was there comes back"


def test_a_page_that_does_not_answer_is_named_and_the_rest_is_shown(
    served: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    stack = Path("stacks/Pulumi.dev.yaml")
    (closed,) = free_ports(1)
    stack.write_text(stack.read_text().replace(str(served["metricsPort"]), str(closed)))
    assert run_top("dev", window=1) == 0
    said = capsys.readouterr().out
    assert f"not read: http://127.0.0.1:{closed}/metrics: " in said and "Connection refused" in said and KEPT in said


def test_a_stack_that_is_down_is_one_message_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray, gateway = free_ports(2)
    pool = {"name": "cpu", "accelerator": "CPU", "maxNodes": 1}
    ports = {"rayMetricsPort": ray, "metricsPort": gateway}
    write_project(tmp_path, [model(KEPT, "CPU")], target="local", pools=[pool], local=ports)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match=rf"no metrics page of stack dev answers: .*:{ray}/metrics: .*doctor --stack"):
        run_top("dev", window=1)


def test_in_a_cluster_every_running_pod_of_ray_and_of_the_gateway_is_asked(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forwarded port itself: tests/nodes/test_forward.py."""

    class Api:
        def list(self, _version: str, _kind: str, _namespace: str, selector: str) -> list[dict[str, Any]]:
            if selector == "ray.io/is-ray-node=yes":
                return [pod("head", "Running"), pod("w1", "Running", "l4"), pod("w2", "Pending", "l4")]
            assert selector == "app.kubernetes.io/name=gateway"
            return [pod("gw", "Running")]

    def pod(name: str, phase: str, pool: str = "") -> dict[str, Any]:
        labels = {POOL_LABEL: pool} if pool else {}
        return {"metadata": {"name": name, "labels": labels}, "status": {"phase": phase}}

    asked = []

    def get(_api: object, namespace: str, name: str, port: int, path: str, _seconds: float) -> str:
        asked.append((namespace, name, port, path))
        return ""

    monkeypatch.setattr("modelfleet.infra.kubernetes.forward.get", get)
    cluster: Any = Api()
    read = [one() for one in metrics_pages._cluster(plan, cluster).values()]
    space = plan.namespace
    assert asked == [
        (space, "head", 8080, "/metrics"),
        (space, "w1", 8080, "/metrics"),
        (space, "gw", 8405, "/metrics"),
        (space, "gw", 8405, "/metrics/keys"),
    ]
    assert [one.pools for one in read] == [(), ("l4",), (), ()] and len({one.place for one in read}) == 4
