"""Others' load generators (`tools.bench.clients`) against a pretend server: whom they ask, how often, and what is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.gateway.backend import Backend
from tests.ports import free_ports
from tools.bench import clients, load, models, servers
from tools.bench.load import Target
from tools.bench.processes import Tree

MODEL = "bench/pretend"
#: What a stream of vLLM says: its tokens, then how many they were.
CHUNK: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
TOKEN = {**CHUNK, "choices": [{"index": 0, "delta": {"content": " token"}, "finish_reason": None}]}
USAGE = {**CHUNK, "choices": [], "usage": {"prompt_tokens": 64, "completion_tokens": 3, "total_tokens": 67}}


@pytest.fixture
def backend() -> Iterator[Backend]:
    (port,) = free_ports(1)
    running = Backend(port, pause_s=0.001, data=[*[json.dumps(TOKEN)] * 3, json.dumps(USAGE)]).start()
    yield running
    running.stop()


@pytest.fixture
def pretend(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Both servers of the comparison are `backend`, with as many targets as the real ones have."""
    base = f"http://127.0.0.1:{backend.port}"

    @contextmanager
    def serve(variant: servers.Variant, *_: Any) -> Iterator[servers.Running]:
        names = {"vllm": ["/alone"], "fleet": ["/own-route", "/gateway"]}[variant.kind]
        targets = [Target(f"{variant.name}, {name[1:]} /v1", base, f"{name}/v1/chat", MODEL) for name in names]
        yield servers.Running(targets, Tree(psutil.Popen([sys.executable, "-c", ""])), 0.0)

    monkeypatch.setattr(servers, "serve", serve)
    monkeypatch.setattr(models, "folder_of", Path)
    monkeypatch.setattr(models, "model_file", lambda _: {})
    return backend


def light(target: Target, tokenizer: Path, concurrency: int, requests: int, folder: Path) -> clients.Result:
    """The benchmark's own generator, in the shape of the others'."""
    assert tokenizer == Path("tiny") and folder.is_dir()
    found = load.run(target, load.Load(requests, concurrency, stream=True))
    return clients.Result(concurrency, found.per_second, found.first_s * 1e3, found.first_p99_s * 1e3, found.failed)


def test_each_load_goes_to_vllm_serve_and_to_our_v1(
    pretend: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A load has at least three requests for each connection, or it would be over before all are busy."""
    monkeypatch.setattr(clients, "CLIENTS", {"light": light})
    assert clients.main(["--requests", "5", "--concurrency", "1", "8"]) == 0
    asked = [one.path.split("/")[1] for one in pretend.seen]
    assert asked == ["alone"] * (5 + 24) + ["gateway"] * (5 + 24), "our own route is not what is compared"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:3] for row in cells] == [
        ["light", f"{name} /v1", load] for load in ("1", "8") for name in ("vllm serve, alone", "modelfleet, gateway")
    ]
    assert all(float(row[3]) > 0 and float(row[4]) > 0 and row[6] == "0" for row in cells)


def test_a_client_that_ends_is_one_message_and_what_was_measured_is_shown(
    pretend: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(target: Target, tokenizer: Path, concurrency: int, requests: int, folder: Path) -> clients.Result:
        if "alone" in target.path:
            return light(target, tokenizer, concurrency, requests, folder)
        code = "import os, sys; print(os.environ['HF_HUB_OFFLINE'], 'no route', file=sys.stderr); sys.exit(3)"
        clients._run([sys.executable, "-c", code], {}, folder)
        raise AssertionError("a client that fails is no result")

    monkeypatch.setattr(clients, "CLIENTS", {"ends": ends})
    assert clients.main(["--requests", "3", "--concurrency", "1"]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].endswith("ended with 3: 1 no route")
    assert "Traceback" not in said.err
    assert [line.split("|")[2].strip() for line in said.out.splitlines()[2:]] == ["vllm serve, alone /v1"]


@pytest.mark.long(why="imports vLLM and downloads guidellm's 240 MB once")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(clients.CLIENTS))
def test_a_real_client_asks_and_its_report_is_read(name: str, backend: Backend, tmp_path: Path) -> None:
    target = Target("pretend", f"http://127.0.0.1:{backend.port}", "/v1/chat/completions", MODEL)
    found = clients.CLIENTS[name](target, models.folder_of("smollm"), 2, 6, tmp_path)
    posts = [json.loads(one.body) for one in backend.seen if one.path == target.path]
    assert len(posts) >= 6 and {one["model"] for one in posts} == {MODEL} and all(one["stream"] for one in posts)
    assert (found.concurrency, found.failed) == (2, 0)
    assert found.per_second > 0 and 0 < found.first_ms <= found.first_p99_ms
