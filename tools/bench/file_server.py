"""`python -m tools.bench.file_server FOLDER PORT`: a stand-in for S3 over a folder, in several processes.

The kernel sends the bytes (`sendfile`), so that the server takes hardly any CPU time from the client that is measured.
It knows `ListObjectsV2`, `HeadObject`, `GetObject` with a range and a whole `PutObject`, and checks no signature: it
listens on loopback alone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from modelfleet.serving.config.errors import SetupError
from tools.paths import ROOT

PROCESSES = 4
#: What one listing returns at most.
MOST_KEYS = 1000
#: Seconds for its Python to start.
START_S = 60.0


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    folder: Path

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    #: Headers and body are two writes; with Nagle's algorithm the body would wait 40 ms for the client's delayed ACK.
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        """No access log."""

    def do_HEAD(self) -> None:
        """One object's size, which boto3's own download asks first."""
        self.do_GET()

    def do_GET(self) -> None:
        """One object, or the listing of a bucket."""
        asked = urlsplit(self.path)
        bucket, _, key = unquote(asked.path).lstrip("/").partition("/")
        if key:
            self._send(self.server.folder / bucket / key)
        else:
            self._list(self.server.folder / bucket, parse_qs(asked.query).get("prefix", [""])[0])

    def do_PUT(self) -> None:
        """A whole object; it appears once its last byte is there."""
        path = self.server.folder / unquote(urlsplit(self.path).path).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        left = int(self.headers["Content-Length"])
        with tempfile.NamedTemporaryFile(dir=self.server.folder, delete=False) as stream:
            while left and (piece := self.rfile.read(min(left, 2**20))):
                stream.write(piece)
                left -= len(piece)
        if left:
            Path(stream.name).unlink()  # the client went away
        else:
            Path(stream.name).rename(path)
            self._answer(200, b"")

    def _send(self, path: Path) -> None:
        if not path.is_file():
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        size = path.stat().st_size
        first, _, last = self.headers.get("Range", f"bytes=0-{max(0, size - 1)}").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or size), size - 1)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(end - start + 1))
        self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        self.send_header("ETag", f'"{size}"')
        self.end_headers()
        self.wfile.flush()
        if self.command == "HEAD":
            return
        with path.open("rb") as stream:
            while start <= end:
                start += os.sendfile(self.connection.fileno(), stream.fileno(), start, end - start + 1)

    def _list(self, bucket: Path, prefix: str) -> None:
        keys = sorted(one.relative_to(bucket).as_posix() for one in bucket.rglob("*") if one.is_file())
        rows = [
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{size}"</ETag><Size>{size}</Size></Contents>'
            for key in [key for key in keys if key.startswith(prefix)][:MOST_KEYS]
            if (size := (bucket / key).stat().st_size) >= 0
        ]
        head = "<ListBucketResult><IsTruncated>false</IsTruncated>"
        self._answer(200, f"{head}{''.join(rows)}</ListBucketResult>".encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def running(folder: Path, port: int) -> Iterator[str]:
    """Its address while it runs, over a folder that is made if it is not there.

    Raises `SetupError` where it does not run, such as on a port that another has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if answers(port):
        raise SetupError(f"something listens on port {port} already; choose another with --port")
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "tools.bench.file_server", str(folder), str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        try:
            ends = time.monotonic() + START_S
            while not answers(port):
                if process.poll() is not None or time.monotonic() > ends:
                    log.seek(0)
                    raise SetupError(f"the stand-in for S3 does not run: {log.read().decode(errors='replace')[-500:]}")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            while answers(port):  # a child of it, from which the next run would get half an answer
                time.sleep(0.05)


def answers(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    """Serves until it is ended; the children end with it."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    for _ in range(PROCESSES - 1):
        if os.fork() == 0:
            break
    server = _Server(("127.0.0.1", port), _Handler)
    server.folder = folder
    server.serve_forever()


if __name__ == "__main__":
    main()
