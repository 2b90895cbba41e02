"""Weights from Azure: from Microsoft's emulator if `azurite-blob` is installed, and from a stand-in.

The stand-in is ours and checks no signature: it tests our calls, not Azure.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
import requests

from modelfleet.serving import weights
from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror import gcs_azure
from tests.ports import free_port
from tests.unit.serving.test_weights import model

ACCOUNT = "devstoreaccount1"
#: Azurite's, the same everywhere: learn.microsoft.com/azure/storage/common/storage-connect-azurite
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class StandIn(BaseHTTPRequestHandler):
    """Put Blob, Get Blob with a range, and List Blobs of one container `fleet`."""

    blobs: dict[str, bytes] = {}

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.blobs[self._name()] = body
        self._answer(201, b"")

    def do_GET(self) -> None:
        query, name = parse_qs(urlsplit(self.path).query), self._name()
        if query.get("comp") == ["list"] and urlsplit(self.path).path.endswith("/fleet"):
            self._answer(200, self._listing(query.get("prefix", [""])[0]))
        elif name not in self.blobs:
            self._answer(404, b"<Error><Code>BlobNotFound</Code></Error>")
        elif wanted := self.headers["x-ms-range"] or self.headers["Range"]:
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            body = self.blobs[name]
            self._answer(206, body[first : last + 1], f"bytes {first}-{min(last + 1, len(body)) - 1}/{len(body)}")
        else:
            self._answer(200, self.blobs[name])

    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).partition("/fleet/")[2]

    def _listing(self, prefix: str) -> bytes:
        entries = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>Sat, 28 Nov 2026 10:00:00 GMT</Last-Modified>"
            f"<Etag>{_etag(body)}</Etag><Content-Length>{len(body)}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for name, body in sorted(self.blobs.items())
            if name.startswith(prefix)
        )
        return f"<EnumerationResults><Blobs>{entries}</Blobs><NextMarker /></EnumerationResults>".encode()

    def _answer(self, status: int, body: bytes, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 10:00:00 GMT")
        self.send_header("ETag", f'"{_etag(self.blobs.get(self._name(), b""))}"')
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def _etag(body: bytes) -> str:
    return "0x" + hashlib.sha256(body).hexdigest()[:16].upper()


@pytest.fixture(params=["stand-in", "azurite"])
def azure(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An account with the empty container `fleet`; the environment names it, as on a node."""
    monkeypatch.setenv("MODELFLEET_MODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    if request.param == "azurite":
        port = free_port()
        process = _azurite(port)
    else:
        StandIn.blobs = {}
        server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{port}/{ACCOUNT}")
    yield
    if request.param == "azurite":
        process.terminate()
        process.wait()
    else:
        server.shutdown()
        server.server_close()


def _azurite(port: int) -> subprocess.Popen[bytes]:
    command = shutil.which("azurite-blob")
    if command is None:
        pytest.skip("azurite-blob is not on the PATH; `npm install -g azurite` brings it")
    options = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen([command, f"--blobPort={port}", *options], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            assert _create_container(port) == 201
            return process
        except requests.ConnectionError:
            time.sleep(0.1)
    process.kill()
    raise RuntimeError("azurite-blob did not start")


def _create_container(port: int) -> int:
    """Calls Create Container, signed by hand because obstore has no call for it."""
    date = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = {"x-ms-date": date, "x-ms-version": "2021-12-02"}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    text = "\n".join([*lines, f"/{ACCOUNT}/{ACCOUNT}/fleet", "restype:container"])
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    url = f"http://127.0.0.1:{port}/{ACCOUNT}/fleet?restype=container"
    return requests.put(url, headers=headers, timeout=10).status_code


def put(files: dict[str, bytes]) -> Any:
    client = gcs_azure.azure("fleet").client
    for name, body in files.items():
        client.put(name, body)
    return client


def test_weights_are_read_from_azure(azure: None) -> None:
    put({"w/config.json": b"{}", "w/sub dir/a+b.bin": b"x" * 3_000_000, "wx/other": b"no"})
    folder = Path(weights.resolve(model(azure_mirror_config={"bucket_uri": "az://fleet/w"}), {}))
    assert (folder / "sub dir" / "a+b.bin").read_bytes() == b"x" * 3_000_000
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "sub dir"]
    with pytest.raises(MirrorError, match=r"az://fleet/none has 0 objects \(allowed: 1 to 10000\); correct bucket_uri"):
        weights.resolve(model(azure_mirror_config={"bucket_uri": "az://fleet/none"}), {})
    with pytest.raises(MirrorError, match="az://nowhere: it returned 404; correct the bucket's name"):
        weights.resolve(model(azure_mirror_config={"bucket_uri": "az://nowhere/w"}), {})


def test_one_file_and_an_object_that_changes(azure: None) -> None:
    store = gcs_azure.azure("fleet")
    client = put({"x/one.txt": b"12345"})
    assert list(store.list("x/one.txt")) == ["x/one.txt"]
    assert store.read("x/none", 10) is None
    tag = store.list("x/one.txt")["x/one.txt"].tag
    assert b"".join(store.stream("x/one.txt", 1, 3, tag)) == b"234"
    client.put("x/one.txt", b"54321")
    with pytest.raises(MirrorError, match="az://fleet/x/one.txt changed during the download"):
        list(store.stream("x/one.txt", 1, 3, tag))


def test_an_object_that_marks_a_folder_is_not_a_file(azure: None) -> None:
    """Consoles and `aws s3 sync` leave such objects, empty and with a trailing `/`."""
    put({"w/sub/a": b"1", "w/sub": b"", "w/empty": b""})
    assert sorted(gcs_azure.azure("fleet").list("w/")) == ["w/empty", "w/sub/a"]


def test_azure_without_an_account_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODELFLEET_MODEL_CACHE", str(tmp_path))
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MirrorError, match=r"az://fleet: .*; set AZURE_STORAGE_ACCOUNT_NAME"):
        weights.resolve(model(azure_mirror_config={"bucket_uri": "az://fleet/w"}), {})
