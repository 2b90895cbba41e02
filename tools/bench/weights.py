"""`python -m tools.bench.weights`: compares fetching a mirror with raw parallel copies from the same S3 server.

The server is rclone's `serve s3` over a folder on this machine (built once from `tools/go/rclone`), because moto, which
the tests use, is too slow as a baseline. It serves random bytes in files like those of a checkpoint. Each way runs
several times, in random order, into a fresh folder; the page cache holds the source for all of them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import obstore.store
import psutil
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from modelfleet.serving.mirror import Manifest, download, fetch
from modelfleet.serving.mirror.download import ranges
from modelfleet.serving.mirror.gcs_azure import ObstoreStore
from modelfleet.serving.mirror.manifest import CHUNK_BYTES, MANIFEST, Checksum
from modelfleet.serving.mirror.node import fetch_manifest
from modelfleet.serving.mirror.origin import Folder
from modelfleet.serving.mirror.read import read_manifest
from modelfleet.serving.mirror.store import PIECE_BYTES, READERS, S3Store, parse_uri
from modelfleet.serving.mirror.upload import entry_of
from tools.bench import file_server, models
from tools.gobuild import GoCommand, GoModule, build
from tools.paths import ROOT

MODULE = GoModule(
    "rclone-1.76.0",
    ROOT / "tools" / "go" / "rclone",
    [GoCommand("rclone", "modelfleet.local/tools/rclone", "-s -w")],
    minutes="about 2 minutes",
    needed_for="the S3 server of this benchmark",
)
#: Runs in its own process; argv: way, mirror, cache. Prints the seconds to fetch and to start the engine.
LOAD = """
import sys, time
from pathlib import Path
from modelfleet.serving.mirror import complete_version, fetch

if __name__ == "__main__":
    way, uri, cache = sys.argv[1:]
    from vllm import LLM

    begun = time.perf_counter()
    model = str(fetch(uri, Path(cache))) if way == "fetch" else complete_version(uri)
    fetched = time.perf_counter()
    options = {} if way == "fetch" else {"load_format": "runai_streamer"}
    LLM(model=model, dtype="bfloat16", max_model_len=512, max_num_seqs=8, enforce_eager=True, **options)
    print("LOADED", fetched - begun, time.perf_counter() - fetched, flush=True)
"""
KEY = "bench"
URI = "s3://bench/models/random"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.weights", description="Measures how fast weights are fetched."
    )
    parser.add_argument("--mib", type=int, default=1024, help="total size of the files")
    parser.add_argument("--files", type=int, default=4, help="how many files")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way")
    parser.add_argument("--connections", type=int, default=READERS, help="reads at a time, of every way")
    parser.add_argument(
        "--server",
        choices=("rclone", "files"),
        default="rclone",
        help="rclone's S3 server, or files sent by the kernel, which takes less of the CPUs (file_server.py)",
    )
    parser.add_argument("--port", type=int, default=9320, help="port of the S3 server")
    parser.add_argument(
        "--load",
        action="store_true",
        help="start vLLM on SmolLM2, fetched or streamed (needs runai-model-streamer[s3])",
    )
    options = parser.parse_args(arguments)
    binary = build(MODULE) / "rclone" if options.server == "rclone" else None
    vars(download)["READERS"] = options.connections  # of every download in this process
    with tempfile.TemporaryDirectory(prefix="bench-weights-") as name:
        folder = Path(name)
        source = models.folder_of("smollm") if options.load else _random_model(folder / "model", options)
        _mirror(source, folder / "served" / "bench" / "models" / "random")
        served = folder / "served"
        with _rclone(binary, served, options.port) if binary else file_server.running(served, options.port) as endpoint:
            os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": KEY}
            os.environ |= {"AWS_DEFAULT_REGION": "us-east-1"}
            s3 = boto3.client("s3", config=Config(max_pool_connections=2 * options.connections))
            _loads(folder, options.rounds) if options.load else _compare(s3, folder, options)
    return 0


def _mirror(source: Path, target: Path) -> None:
    """Write what `fill` makes where the server reads it: rclone's S3 does not take multipart uploads in parallel."""
    origin = Folder(source)
    files = [entry_of(origin, file, CHUNK_BYTES) for file in origin.files()]
    manifest = Manifest(model_id="bench/random", source="random", source_revision=None, files=files)
    shutil.copytree(source, target / manifest.version)
    (target / MANIFEST).write_bytes(manifest.to_json())


def _loads(folder: Path, rounds: int) -> None:
    """Compare fetch and load with streaming from S3, each in a new process with an empty cache, in random order."""
    (folder / "load.py").write_text(LOAD, encoding="utf-8")
    seconds: dict[str, list[tuple[float, float]]] = {"fetch": [], "runai_streamer": []}
    environment = {
        **os.environ,
        **models.ENVIRONMENT,
        **models.CPU_ENVIRONMENT,
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for number in range(rounds):
        for way in random.sample(list(seconds), len(seconds)):
            command = [sys.executable, str(folder / "load.py"), way, URI, str(folder / f"cache-{number}-{way}")]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if not (found := [line for line in done.stdout.splitlines() if line.startswith("LOADED")]):
                raise RuntimeError(f"{way} did not load: {done.stderr[-1500:]}")
            fetched, started = map(float, found[0].split()[1:])
            seconds[way].append((fetched, started))
    print("\n| way | fetch s | engine start s | together |\n|---|---|---|---|")
    for way, took in seconds.items():
        cells = [[one[0] for one in took], [one[1] for one in took], [sum(one) for one in took]]
        print(f"| {way} | " + " | ".join(f"{min(c):.1f} / {statistics.median(c):.1f}" for c in cells) + " |")


def _compare(s3: Any, folder: Path, options: argparse.Namespace) -> None:
    ways: dict[str, Callable[[Path], object]] = {
        "raw: the same ranges, unchecked": partial(_raw, s3, options.connections),
        "raw, and its bytes checked": partial(_raw, s3, options.connections, check=True),
        "modelfleet: each chunk checked": lambda to: fetch(URI, to, s3=s3),
        "the same over obstore": _obstore,
        "boto3's transfer manager": partial(_boto3, s3, options.connections),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way in random.sample(list(ways), len(ways)):
            to = folder / "to"
            to.mkdir()
            os.sync()
            begun, used = time.perf_counter(), sum(psutil.Process().cpu_times()[:2])
            ways[way](to)
            seconds[way].append(time.perf_counter() - begun)
            cpu[way].append(sum(psutil.Process().cpu_times()[:2]) - used)
            shutil.rmtree(to)
    raw = statistics.median(seconds[next(iter(ways))])
    machine = f"{options.connections} connections, {os.cpu_count()} CPUs, load {os.getloadavg()[1]:.0f}"
    print(f"\n{options.mib} MiB in {options.files} files, {machine}\n")
    print("| way | MB/s: least / median / most | of raw | CPU s |\n|---|---|---|---|")
    for way, took in seconds.items():
        speeds = [options.mib * 1.048576 / one for one in (max(took), statistics.median(took), min(took))]
        ratio = raw / statistics.median(took)
        shown = " / ".join(f"{one:.0f}" for one in speeds)
        print(f"| {way} | {shown} | {ratio:.2f} | {statistics.median(cpu[way]):.1f} |")


def _random_model(folder: Path, options: argparse.Namespace) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    for number in range(options.files):
        with (folder / f"model-{number}.safetensors").open("wb") as stream:
            for _ in range(options.mib // options.files):
                stream.write(os.urandom(2**20))
    return folder


@contextmanager
def _rclone(binary: Path, served: Path, port: int) -> Iterator[str]:
    command = [
        str(binary), "serve", "s3", str(served), f"--addr=127.0.0.1:{port}", f"--auth-key={KEY},{KEY}",
        "--etag-hash=", "--config=", "--vfs-cache-mode=off",
    ]  # fmt: skip
    log = served.parent / "rclone.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 60
        while not file_server.answers(port) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is not None:
            raise RuntimeError(f"the server ended; the end of its log: {log.read_text()[-500:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _raw(s3: Any, connections: int, to: Path, check: bool = False) -> None:
    """Copy the same ranges with as many threads, to the same places, without checking them.

    With `check` the checksum is counted and not compared: what is then left beside `fetch` is no checksum's cost.
    """
    store = S3Store("bench", s3)
    with concurrent.futures.ThreadPoolExecutor(connections) as pool:
        jobs = []
        for key, found in store.list("models/random/").items():
            path = to / Path(key).name
            with path.open("wb") as stream:
                stream.truncate(found.size)
            jobs += [
                pool.submit(_range, store, key, path, start, size, check)
                for _, start, size in ranges(found.size, CHUNK_BYTES)
            ]
        for job in jobs:
            job.result()


def _range(store: S3Store, key: str, path: Path, start: int, size: int, check: bool) -> None:
    checksum = Checksum()
    with path.open("r+b", buffering=0) as stream:
        stream.seek(start)
        for piece in store.stream(key, start, size):
            if check:
                checksum.update(piece)
            stream.write(piece)


def _obstore(to: Path) -> None:
    """Run `fetch` with obstore's client, which reads Google Cloud Storage and Azure; here all clients read S3."""
    access: dict[str, Any] = {
        "access_key_id": KEY,
        "secret_access_key": KEY,
        "endpoint": os.environ["AWS_ENDPOINT_URL"],
    }
    store = ObstoreStore("s3://bench", obstore.store.S3Store("bench", client_options={"allow_http": True}, **access))
    location = parse_uri(URI)
    manifest = read_manifest(store, location)
    assert manifest is not None
    fetch_manifest(store, location, manifest, to, lambda line: None)


def _boto3(s3: Any, connections: int, to: Path) -> None:
    """Copy with boto3's own parallel download, in parts as large as ours."""
    config = TransferConfig(
        multipart_threshold=CHUNK_BYTES,
        multipart_chunksize=CHUNK_BYTES,
        max_concurrency=connections,
        io_chunksize=PIECE_BYTES,
    )
    for key in S3Store("bench", s3).list("models/random/"):
        s3.download_file("bench", key, str(to / Path(key).name), Config=config)


if __name__ == "__main__":
    sys.exit(main())
