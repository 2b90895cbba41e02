"""A Hugging Face Hub on this machine: one repository from a folder, as huggingface_hub and its command ask for it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "c" * 40
TOKEN = {"displayName": "t", "role": "read"}
WHO = {"type": "user", "name": "me", "auth": {"type": "access_token", "accessToken": TOKEN}}


class Hub(ThreadingHTTPServer):
    """`repository` with the files of `folder`, at a free port of 127.0.0.1.

    After `held_after` bytes of a file it sends nothing more for that request, or closes the connection while it has
    `cuts` left. `asked` has the name and `Range` of each file that was fetched, `tokens` each `Authorization` with which
    its API of models was asked.
    """

    daemon_threads = True

    def __init__(self, repository: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository = repository
        self.files = {one.name: one for one in sorted(folder.iterdir()) if one.is_file()}
        self.hashes = {name: hashlib.sha256(one.read_bytes()).hexdigest() for name, one in self.files.items()}
        self.held_after: int | None = None
        self.cuts = 0
        self.released = threading.Event()
        self.asked: list[tuple[str, str | None]] = []
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        """HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def entry(self, name: str) -> dict[str, object]:
        """A file as the tree has it."""
        return {"type": "file", "path": name, "size": self.files[name].stat().st_size, "oid": self.hashes[name][:40]}

    def handle_error(self, *_: object) -> None:
        """A client that was killed closes its connection."""


class Handler(BaseHTTPRequestHandler):
    """One request to a `Hub`."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        """The API of models, who asks, or a file."""
        hub, path = self.server, urlsplit(self.path).path
        api = f"/api/models/{hub.repository}"
        if path.startswith("/api/models/"):
            hub.tokens.add(self.headers["Authorization"])
        if path == "/api/whoami-v2":
            self._answer(WHO)
        elif path == api or path.startswith(f"{api}/revision/"):
            self._answer({"id": hub.repository, "sha": COMMIT, "siblings": [{"rfilename": one} for one in hub.files]})
        elif path.startswith(f"{api}/tree/"):
            self._answer([hub.entry(name) for name in hub.files])
        elif found := re.fullmatch(rf"/{hub.repository}/resolve/[^/]+/(.+)", path):
            self._file(found[1])
        else:
            self._answer({"error": "not here"}, 404)

    do_HEAD = do_GET

    def _answer(self, data: object, status: int = 200) -> None:
        body = json.dumps(data).encode()
        self._begin(status, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        if self.command == "GET":
            self.wfile.write(body)

    def _file(self, name: str) -> None:
        hub = self.server
        if name not in hub.files:
            self._begin(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT, "Content-Length": "0"})
            return
        size, wanted = hub.files[name].stat().st_size, self.headers["Range"]
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        first, last = (int(found[1]), int(found[2] or size - 1)) if found else (0, size - 1)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hub.hashes[name]}"', "Content-Length": str(last - first + 1)}
        if found:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._begin(206 if found else 200, headers)
        if self.command == "GET":
            hub.asked.append((name, wanted))
            self._send(hub.files[name], first, last - first + 1)

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, path: Path, first: int, count: int) -> None:
        hub = self.server
        with path.open("rb") as stream:
            stream.seek(first)
            if hub.held_after is not None and count > hub.held_after:
                self.wfile.write(stream.read(hub.held_after))
                if hub.cuts:
                    hub.cuts -= 1
                    hub.held_after = hub.held_after if hub.cuts else None
                else:
                    hub.released.wait(60)
                self.close_connection = True
                return
            while count and (part := stream.read(min(count, 2**20))):
                self.wfile.write(part)
                count -= len(part)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@contextmanager
def hub_of(repository: str, folder: Path) -> Iterator[Hub]:
    """A `Hub` that answers until the end of the block."""
    with Hub(repository, folder) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        try:
            yield made
        finally:
            made.released.set()
            made.shutdown()
