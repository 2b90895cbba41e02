"""A mirror is filled straight from the Hub: no disk, bounded memory, every byte verified, and resumed where it stopped.

The Hub here is a server on this machine that keeps the real one's rules: an API with pages, a redirect to a CDN at
another address for files in LFS, ranges, and no answer for a commit or a file that it does not have.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from modelfleet.serving.errors import MirrorError, WeightsError
from modelfleet.serving.mirror import Manifest, Status, fetch, fill_from, status
from modelfleet.serving.mirror import __main__ as command
from modelfleet.serving.mirror import hub as hub_module
from modelfleet.serving.mirror.hub import Repository

URI = "s3://fleet/models/org--tiny"
COMMIT = "c" * 40
MIB = 2**20
TOKEN = "hf_secret"


class Server(ThreadingHTTPServer):
    def handle_error(self, *connection: Any) -> None:
        """A client that has enough closes its connection; anything else fails the test there."""


class Hub:
    """Repository `org/tiny` at `COMMIT`; `breaks` counts connections that the CDN still cuts in the middle."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.lied: dict[str, str] = {}
        self.breaks = 0
        self.until_break = MIB
        self.ignores_ranges = False
        self.api_tokens: list[str | None] = []
        self.cdn: list[tuple[str, str, str | None]] = []
        self.page = 2
        self.api_server = Server(("127.0.0.1", 0), self._handler(self._api))
        self.cdn_server = Server(("127.0.0.1", 0), self._handler(self._cdn))
        for server in self.servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()

    @property
    def servers(self) -> tuple[ThreadingHTTPServer, ThreadingHTTPServer]:
        return self.api_server, self.cdn_server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_server.server_address[1]}"

    def in_lfs(self, name: str) -> bool:
        return name.endswith((".safetensors", ".bin", ".gguf"))

    def entry(self, name: str) -> dict[str, Any]:
        body = self.files[name]
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(body), "oid": "0" * 40}
        if self.in_lfs(name):
            sha256 = self.lied.get(name, hashlib.sha256(body).hexdigest())
            entry["lfs"] = {"oid": sha256, "size": len(body), "pointerSize": 130}
        return entry

    def _api(self, request: BaseHTTPRequestHandler) -> None:
        self.api_tokens.append(request.headers.get("Authorization"))
        path, query = urlsplit(request.path).path, parse_qs(urlsplit(request.path).query)
        if path in ("/api/models/org/tiny/revision/main", "/api/models/org/tiny"):
            return send(request, 200, json.dumps({"id": "org/tiny", "sha": COMMIT}).encode())
        if path == f"/api/models/org/tiny/tree/{COMMIT}":
            start = int(query.get("cursor", ["0"])[0])
            page = [self.entry(name) for name in sorted(self.files)][start : start + self.page]
            more = start + self.page < len(self.files)
            link = f'<{self.url}{path}?recursive=true&cursor={start + self.page}>; rel="next"'
            return send(request, 200, json.dumps(page).encode(), **({"Link": link} if more else {}))
        name = path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
        if name not in self.files:
            return send(request, 404, b"", **{"X-Error-Code": "EntryNotFound"})
        if self.in_lfs(name):
            where = f"http://127.0.0.1:{self.cdn_server.server_address[1]}/{name}"
            return send(request, 302, b"", Location=where)
        return send_range(request, self.files[name])

    def _cdn(self, request: BaseHTTPRequestHandler) -> None:
        name, wanted = request.path[1:], request.headers.get("Range", "")
        self.cdn.append((name, wanted, request.headers.get("Authorization")))
        if self.ignores_ranges:
            return send(request, 200, self.files[name])
        if self.breaks:
            self.breaks -= 1
            return send_range(request, self.files[name], most=self.until_break)
        return send_range(request, self.files[name])

    @staticmethod
    def _handler(answer: Any) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Logs nothing."""

        return Handler


def send(request: BaseHTTPRequestHandler, code: int, body: bytes, **headers: str) -> None:
    request.send_response(code)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


def send_range(request: BaseHTTPRequestHandler, body: bytes, *, most: int | None = None) -> None:
    """A range as HTTP has it; with `most` the connection ends after that many bytes."""
    first, last = map(int, request.headers["Range"].removeprefix("bytes=").split("-"))
    part = body[first : last + 1]
    if not part:
        return send(request, 416, b"")
    request.send_response(206)
    request.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(body)}")
    request.send_header("Content-Length", str(len(part)))
    request.end_headers()
    request.wfile.write(part[:most])
    return None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
    template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub_module, "PAUSE_S", 0)
    made.files = {
        "config.json": b"{}",
        "README.md": b"not needed",
        "sub/empty.txt": b"",
        "tokenizer.json": b"t" * 1000,
        "model-1.safetensors": os.urandom(12 * MIB),
        "model-2.safetensors": os.urandom(7 * MIB),
        "old.bin": b"not needed",
    }
    yield made
    for server in made.servers:
        server.shutdown()
        server.server_close()


def copied(lines: list[str] | None = None) -> Manifest:
    report = lines.append if lines is not None else lambda line: None
    origin = Repository("org/tiny", "main")
    return fill_from(origin, URI, model_id="org/tiny", source="org/tiny", chunk_bytes=5 * MIB, report=report)


def test_a_repository_is_copied_without_a_file_on_this_machine(
    s3: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system node's disk is smaller than one large model."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "no-such-folder"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **keys: pytest.fail("it uses the disk"))
    manifest = copied()
    assert {file.path for file in manifest.files} == set(hub.files) - {"README.md", "old.bin"}
    folder = fetch(URI, tmp_path / "cache")
    for file in manifest.files:
        assert (folder / file.path).read_bytes() == hub.files[file.path], file.path


def test_the_version_is_that_of_the_same_files_in_a_folder(s3: Any, hub: Hub, tmp_path: Path) -> None:
    from modelfleet.serving.mirror import fill

    for name, body in hub.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(body)
    for name in ("README.md", "old.bin"):
        (tmp_path / name).unlink()
    whole = fill(tmp_path, "s3://fleet/other", model_id="org/tiny", source="x", chunk_bytes=5 * MIB)
    mine = copied()
    assert mine.version == whole.version
    assert sorted(mine.files, key=lambda f: f.path) == sorted(whole.files, key=lambda f: f.path)


def test_the_cdn_never_gets_the_hubs_token(s3: Any, hub: Hub) -> None:
    """A company's token would be in the logs of whoever serves the bytes."""
    copied()
    assert set(hub.api_tokens) == {f"Bearer {TOKEN}"}
    assert {token for _, _, token in hub.cdn} == {None}


def test_a_broken_connection_goes_on_at_the_byte_where_it_broke(s3: Any, hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 3
    copied()
    starts = {wanted for name, wanted, _ in hub.cdn if wanted.startswith(f"bytes={MIB}-")}
    assert starts, "it asked again from byte 0"
    folder = fetch(URI, tmp_path / "cache")
    assert (folder / "model-1.safetensors").read_bytes() == hub.files["model-1.safetensors"]


def test_a_hub_that_sends_nothing_any_more_is_an_error_with_the_place(s3: Any, hub: Hub) -> None:
    hub.breaks, hub.until_break = 10**6, 0
    with pytest.raises(WeightsError, match=r"model-\d.safetensors of org/tiny@main: the Hub sent nothing from byte 0"):
        copied()


@pytest.mark.usefixtures("killed_in_the_third_part")
def test_a_hub_that_ignores_ranges_is_refused_with_the_fix(s3: Any, hub: Hub) -> None:
    """Its bytes would be taken for those of the middle of the file."""
    hub.ignores_ranges = True
    with pytest.raises(WeightsError, match=r"asked for byte 10485760, the Hub's answer begins at 0; .* HF_ENDPOINT"):
        copied()


def test_bytes_that_differ_from_the_hubs_own_sha256_are_refused_and_leave_no_upload(s3: Any, hub: Hub) -> None:
    hub.lied["model-1.safetensors"] = "1" * 64
    with pytest.raises(MirrorError, match=r"model-1.safetensors of org/tiny@main has other bytes than its SHA-256"):
        copied()
    assert status(URI) is Status.ABSENT, "the manifest comes last"
    assert not s3.list_multipart_uploads(Bucket="fleet").get("Uploads"), "a next call would go on with wrong parts"


class Killed(BaseException):
    """Plays SIGKILL: nothing in the code under test catches it."""


@pytest.fixture
def killed_in_the_third_part(s3: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that ends when two parts of model-1 have arrived; model-2 has arrived whole."""
    from modelfleet.serving.mirror import upload as upload_module

    send = upload_module._Fill._send_part

    def dies(self: Any, target: dict[str, str], upload: str, number: int, body: bytes) -> dict[str, Any]:
        if number == 3:
            raise Killed
        return send(self, target, upload, number, body)

    monkeypatch.setattr(upload_module, "PARALLEL", 1)
    with monkeypatch.context() as patch:
        patch.setattr(upload_module._Fill, "_send_part", dies)
        with pytest.raises(Killed):
            copied()
    hub.cdn.clear()


@pytest.mark.usefixtures("killed_in_the_third_part")
def test_a_killed_copy_asks_the_hub_only_for_what_has_not_arrived(s3: Any, hub: Hub, tmp_path: Path) -> None:
    lines: list[str] = []
    copied(lines)
    assert [(name, wanted) for name, wanted, _ in hub.cdn] == [
        ("model-1.safetensors", f"bytes={10 * MIB}-{12 * MIB - 1}")
    ]
    assert [line for line in lines if line.startswith("uploading")] == ["uploading model-1.safetensors (12.6 MB)"]
    folder = fetch(URI, tmp_path / "cache")
    assert (folder / "model-1.safetensors").read_bytes() == hub.files["model-1.safetensors"]


@pytest.mark.usefixtures("killed_in_the_third_part")
def test_parts_that_are_wrong_are_found_and_sent_again(s3: Any, hub: Hub, tmp_path: Path) -> None:
    """What an earlier call has sent never came by the one that finishes it."""
    (upload,) = s3.list_multipart_uploads(Bucket="fleet")["Uploads"]
    s3.upload_part(Bucket="fleet", Key=upload["Key"], UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * (5 * MIB))
    copied()
    folder = fetch(URI, tmp_path / "cache")
    assert (folder / "model-1.safetensors").read_bytes() == hub.files["model-1.safetensors"]


def test_an_object_of_the_right_size_with_other_bytes_is_not_believed(s3: Any, hub: Hub, tmp_path: Path) -> None:
    version = copied().version
    s3.delete_object(Bucket="fleet", Key="models/org--tiny/manifest.json")
    s3.put_object(Bucket="fleet", Key=f"models/org--tiny/{version}/tokenizer.json", Body=b"T" * 1000)
    copied()
    assert (fetch(URI, tmp_path / "cache") / "tokenizer.json").read_bytes() == hub.files["tokenizer.json"]


def test_the_command_copies_from_the_hub_once_per_revision(
    s3: Any, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fill", URI, "--model-id", "org/tiny", "--hub", "org/tiny", "--revision", "main"]
    assert command.main(arguments) == 0
    seen = len(hub.cdn)
    assert command.main(arguments) == 0
    assert len(hub.cdn) == seen
    assert "already has org/tiny at main" in capsys.readouterr().err


def test_a_repository_without_a_config_is_refused_before_anything_is_copied(s3: Any, hub: Hub) -> None:
    del hub.files["config.json"]
    with pytest.raises(MirrorError, match=r"org/tiny@main has no config.json, so it is not a model"):
        copied()
    assert not hub.cdn


def test_a_copy_takes_little_memory_however_large_the_file(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts a file: one that arrives, one that waits, one that is on its way."""
    import tracemalloc

    from modelfleet.serving.mirror import upload as upload_module
    from modelfleet.serving.mirror.origin import OriginFile
    from modelfleet.serving.mirror.store import PIECE_BYTES, S3Store

    class Zeros:
        def __str__(self) -> str:
            return "zeros"

        def files(self) -> list[OriginFile]:
            whole = hashlib.sha256()
            for _ in range(200):
                whole.update(bytes(MIB))
            return [OriginFile("big.safetensors", 200 * MIB, whole.hexdigest())]

        def stream(self, path: str, offset: int, length: int) -> Iterator[bytes]:
            for _ in range(length // PIECE_BYTES):
                yield bytes(PIECE_BYTES)

    sent: list[int] = []

    def swallow(self: Any, target: dict[str, str], upload: str, number: int, body: bytes) -> dict[str, Any]:
        sent.append(len(body))
        return {"PartNumber": number, "ETag": "x"}

    monkeypatch.setattr(upload_module._Fill, "_send_part", swallow)
    monkeypatch.setattr(s3, "complete_multipart_upload", lambda **keys: None)
    bucket = S3Store("fleet", s3)
    origin = Zeros()
    job = upload_module._Fill(bucket, "models/x/", origin, 8 * MIB, lambda line: None, {})
    tracemalloc.start()
    try:
        job.copy(origin.files())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(sent) == 200 * MIB
    assert peak < 48 * MIB, f"{peak / MIB:.0f} MiB"
