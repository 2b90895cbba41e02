"""What a local start says of its parts: of the engine's log, and of a download from the Hub before it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.local.provider.progress import Progress
from modelfleet.infra.local.provider.replica_log import doing
from modelfleet.serving import hub
from modelfleet.serving.engine_log import start_parts
from modelfleet.serving.mirror.download import Download, Wanted

LINES = (
    "(EngineCore pid=9) INFO 11-30 21:00:01 [gpu_model_runner.py:5039] Starting to load model org/a...",
    "(EngineCore pid=9) INFO 11-30 21:00:04 [gpu_model_runner.py:5149] Model loading took 15.0 GiB memory and 3.05 seconds",
    "(EngineCore pid=9) INFO 11-30 21:00:05 [monitor.py:40] Starting torch.compile",
    "(EngineCore pid=9) INFO 11-30 21:00:30 [monitor.py:60] torch.compile took 24.55 s in total",
    "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  10%|█         | 5/51",
    "(EngineCore pid=9) INFO 11-30 21:00:37 [gpu_model_runner.py:6581] Graph capturing finished in 6 secs, took 0.30 GiB",
)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, ""),
        (1, "load now"),
        (2, "load 3 s"),
        (3, "load 3 s, compile now"),
        (4, "load 3 s, compile 25 s"),
        (5, "load 3 s, compile 25 s, graphs now"),
        (6, "load 3 s, compile 25 s, graphs 6 s"),
    ],
)
def test_the_parts_of_a_start_are_told_with_their_seconds(count: int, said: str) -> None:
    assert start_parts("\n".join(LINES[:count])) == said


def test_nothing_goes_on_once_the_engine_is_there() -> None:
    """vLLM's CPU build does not say how long its weights took."""
    there = "INFO 11-30 21:00:40 [core.py:344] init engine (profile, create kv cache, warmup model) took 0.76 seconds"
    assert start_parts("\n".join((LINES[0], there))) == ""


class Chunks:
    """A bucket's one object."""

    def stream(self, key: str, offset: int, length: int, tag: str | None) -> Iterator[bytes]:
        yield b"x" * length


def starting(**more: Any) -> dict[str, Any]:
    replica = {"state": "STARTING", "worker_id": "abc", "pid": 7, **more}
    return {"status": "DEPLOYING", "message": "", "deployments": {"vllm": {"message": "", "replicas": [replica]}}}


def test_progress_has_the_parts_and_vllms_last_line(tmp_path: Path) -> None:
    (tmp_path / "worker-abc-01000000-7.out").write_text("\n".join(LINES[:4]))
    (tmp_path / "worker-abc-01000000-7.err").write_text(LINES[4])
    line = doing(starting(), tmp_path)
    assert line == ("starting the replica: load 3 s, compile 25 s, graphs now: torch.compile took 24.55 s in total")


def test_a_download_is_told_before_vllm_says_anything(tmp_path: Path) -> None:
    """It said nothing new for as long as it took, and was given up after half an hour."""
    log = tmp_path / "serve" / "replica_app_vllm_abc.log"
    log.parent.mkdir()
    details = starting(log_file_path="/serve/replica_app_vllm_abc.log")
    assert doing(details, tmp_path) == "starting the replica: loading Python modules"
    begins = "INFO 2026-11-30 21:00:01,123 app vllm abc --"
    log.write_text(f"{begins} fetching org/a from the Hugging Face Hub\n{begins} fetching org/a: 812 MB so far\n")
    assert doing(details, tmp_path) == "starting the replica: download now: fetching org/a: 812 MB so far"
    with log.open("a") as more:
        more.write(f"{begins} fetched org/a in 41 s\n{begins} fetching org/draft: 1 MB so far\n")
    assert doing(details, tmp_path) == "starting the replica: download now: fetching org/draft: 1 MB so far"
    with log.open("a") as more:
        more.write(f"{begins} fetched org/draft in 2 s\n")
    assert doing(details, tmp_path) == "starting the replica: download 43 s, import now"
    (tmp_path / "worker-abc-01000000-7.out").write_text("\n".join(LINES[:2]))
    assert doing(details, tmp_path).startswith("starting the replica: download 43 s, load 3 s: Model loading took")


def test_a_copy_of_the_bucket_is_told_as_the_hubs_download_is(tmp_path: Path) -> None:
    """Seam: what the mirror's download says is what the progress reads; it went on after its end."""
    said: list[str] = []
    one = Download(
        Chunks(), "s3://b/a", [Wanted("w", "w", 6, None, None)], tmp_path / "copy", said.append, chunk_bytes=3
    )
    one._reported = 0.0
    one.run()
    begins, log = "INFO 2026-11-30 21:00:01,123 app vllm abc --", tmp_path / "replica.log"
    told = []
    for line in said:
        with log.open("a") as more:
            more.write(f"{begins} {line}\n")
        told.append(doing(starting(log_file_path="/replica.log"), tmp_path))
    assert told[0] == "starting the replica: download now: fetching s3://b/a: 1 files, 0 MB"
    assert told[1].startswith("starting the replica: download now: 0 of 0 MB, ")
    assert told[-1] == "starting the replica: loading Python modules", "it took no second"


def test_the_part_that_goes_on_has_its_own_seconds_and_they_are_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start is given up when it says nothing new for half an hour: a clock that ticks is nothing new."""
    now, said = [100.0], list[str]()
    monkeypatch.setattr("modelfleet.infra.local.provider.progress.time.monotonic", lambda: now[0])
    progress = Progress(said.append)
    for seconds, line in (
        (0, "org/a: load now"),
        (5, "org/a: load 5 s, compile now"),
        (15, "org/a: load 5 s, compile now"),
    ):
        now[0] = 100.0 + seconds
        progress.say(line)
    assert said == [
        "org/a: load 0 s so far (0 s)",
        "org/a: load 5 s, compile 0 s so far (5 s)",
        "org/a: load 5 s, compile 10 s so far (15 s)",
    ]
    assert progress.unchanged_seconds == 10


def test_the_hubs_download_says_how_much_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "REPORT_EVERY_S", 0.01)
    said: list[str] = []
    with hub._told("org/a", tmp_path, said.append):
        (tmp_path / "blobs").mkdir()
        (tmp_path / "blobs" / "0.incomplete").write_bytes(b"x" * 3_000_000)
        (tmp_path / "link").symlink_to(tmp_path / "blobs" / "0.incomplete")
        ends = time.monotonic() + 20
        while "fetching org/a: 3 MB so far" not in said and time.monotonic() < ends:
            time.sleep(0.01)
    assert "fetching org/a: 3 MB so far" in said
    assert re.fullmatch(r"fetched org/a in \d+ s", said[-1]), "how long it took"
    count = len(said)
    time.sleep(0.1)
    assert len(said) == count, "it went on after the end"
    with pytest.raises(OSError), hub._told("org/a", tmp_path, said.append):
        raise OSError("No space left on device")
    assert len(said) == count, "nothing was fetched"
    with hub._told("org/a", tmp_path, None):
        pass
