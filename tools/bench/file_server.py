"""`python -m tools.bench.file_server FOLDER PORT`: what reading from S3 asks, over a folder, in several processes.

The kernel sends the bytes (`sendfile`), so that the server takes hardly any CPU time from the client that is measured.
It knows `ListObjectsV2`, `HeadObject` and `GetObject` with a range, and checks no signature: it listens
on loopback alone.
"""

from __future__ import annotations

import os
import socket
import sys
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PROCESSES = 4
#: What one listing returns at most.
MOST_KEYS = 1000


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    folder: Path

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
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
