"""A stand-in for Ray Serve in the gateway's tests: notes every request, echoes what it got, streams on demand."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Seen:
    """One request as it reached the backend."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Backend:
    """A running backend; `down` has the slugs whose health check fails; `events` is the length of a stream."""

    port: int
    seen: list[Seen] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    #: The application of which this is a replica, on its own port; None if this is Serve's own HTTP server.
    replica_of: str | None = None
    draining: bool = False
    #: How often the gateway has checked a model's health.
    checks: int = 0
    aborted: threading.Event = field(default_factory=threading.Event)
    events: int = 20
    pause_s: float = 0.05
    #: The data of a stream's events in place of their numbers.
    data: list[str] = field(default_factory=list)
    hold_s: float = 0.0
    #: Set while requests are answered; clear it, and they wait for it.
    answers: threading.Event = field(default_factory=threading.Event)
    #: How many answers were written, streams aside.
    answered: int = 0
    #: Status and text with which every request is refused, as Serve itself does.
    refuses: tuple[int, str] | None = None
    #: Headers of every answer.
    says: dict[str, str] = field(default_factory=dict)
    server: ThreadingHTTPServer | None = None
    #: Where it listens: the address of a pod.
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        self.answers.set()

    def start(self) -> Backend:
        backend = self

        class Handler(_Handler):
            state = backend

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                """Does not print a closed idle connection."""

        self.server = Server((self.host, self.port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        assert self.server is not None
        self.answers.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def last(self) -> Seen:
        return self.seen[-1]


class _Handler(BaseHTTPRequestHandler):
    state: Backend
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Quiet: the gateway's own log is under test."""

    def do_GET(self) -> None:
        slug = self.path.split("/")[1]
        if self.path == "/-/routes" and self.state.replica_of:
            return self._json(503 if self.state.draining else 200, {f"/{self.state.replica_of}": self.state.replica_of})
        if self.path.endswith("/health") or self.path == "/-/healthz":
            self.state.checks += 1
            return self._json(503 if slug in self.state.down else 200, {})
        self._note(b"")
        return self._json(200, {"path": self.path})

    def do_POST(self) -> None:
        body = self._body()
        self._note(body)
        self.state.answers.wait(60)
        if self.state.hold_s:
            time.sleep(self.state.hold_s)
        if self.state.refuses:
            return self._send(self.state.refuses[0], "text/plain", self.state.refuses[1].encode())
        try:
            request = json.loads(body)
        except ValueError:
            request = {}
        if isinstance(request, dict) and request.get("stream"):
            return self._stream()
        return self._json(200, {"path": self.path, "bytes": len(body)})

    def _note(self, body: bytes) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.state.seen.append(Seen(self.command, self.path, headers, body))

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, status: int, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        for name, value in self.state.says.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.state.answered += 1

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for number in [*(self.state.data or range(self.state.events)), "[DONE]"]:
                event = f"data: {number}\n\n".encode()
                self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
                self.wfile.flush()
                time.sleep(self.state.pause_s)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.state.aborted.set()
            self.close_connection = True
