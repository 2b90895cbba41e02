"""A server that records its requests and answers all of them alike: with JSON, an error or a redirect."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Listener:
    """Answers everything with `answer` as JSON; `seen` has the path and `Authorization` of each request."""

    def __init__(self, answer: Any, redirect_to: str | None, status: int) -> None:
        self.seen: list[tuple[str, str | None]] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listener.seen.append((self.path, self.headers["Authorization"]))
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                self.send_response(302 if redirect_to else status)
                if redirect_to:
                    self.send_header("Location", redirect_to + self.path)
                body = b"" if redirect_to else json.dumps(answer).encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                """Logs nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def url(self, host: str = "127.0.0.1") -> str:
        """Its address, without a trailing slash."""
        return f"http://{host}:{self.server.server_port}"


@contextmanager
def listening(answer: Any, redirect_to: str | None = None, *, status: int = 200) -> Iterator[Listener]:
    """A `Listener` on a free port of 127.0.0.1."""
    made = Listener(answer, redirect_to, status)
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
