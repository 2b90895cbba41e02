"""A Hugging Face Hub on this machine: one repository from a folder, as huggingface_hub and its `hf` command ask for it."""

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
WHO = {"type": "user", "name": "me", "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": "read"}}}


class Hub:
    """`repository` with the files of `folder`. After `held_after` bytes of a file it sends nothing more for that request.

    With `cuts` connections left to cut, it closes the connection there.

    `asked` has the name and `Range` of each file that was fetched, `tokens` each `Authorization` with which its API of models was
    asked.
    """

    def __init__(self, repository: str, folder: Path) -> None:
        self.files = {one.name: one for one in sorted(folder.iterdir()) if one.is_file()}
        self.hashes = {name: hashlib.sha256(one.read_bytes()).hexdigest() for name, one in self.files.items()}
        self.held_after: int | None = None
        self.cuts = 0
        self.released = threading.Event()
        self.asked: list[tuple[str, str | None]] = []
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                if path.startswith("/api/models/"):
                    hub.tokens.add(self.headers["Authorization"])
                if path == "/api/whoami-v2":
                    self.answer(WHO)
                elif re.fullmatch(rf"/api/models/{repository}(/revision/[^/]+)?", path):
                    siblings = [{"rfilename": name} for name in hub.files]
                    self.answer({"id": repository, "sha": COMMIT, "siblings": siblings})
                elif path.startswith(f"/api/models/{repository}/tree/"):
                    self.answer([hub.entry(name) for name in hub.files])
                elif found := re.fullmatch(rf"/{repository}/resolve/[^/]+/(.+)", path):
                    self.file(found[1])
                else:
                    self.answer({"error": "not here"}, 404)

            do_HEAD = do_GET

            def answer(self, data: object, status: int = 200) -> None:
                body = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def file(self, name: str) -> None:
                if name not in hub.files:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                size, wanted = hub.files[name].stat().st_size, self.headers["Range"]
                found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
                first, last = (int(found[1]), int(found[2] or size - 1)) if found else (0, size - 1)
                self.send_response(206 if found else 200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hub.hashes[name]}"')
                self.send_header("Content-Length", str(last - first + 1))
                if found:
                    self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
                self.end_headers()
                if self.command == "GET":
                    hub.asked.append((name, wanted))
                    self.send(hub.files[name], first, last - first + 1)

            def send(self, path: Path, first: int, count: int) -> None:
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

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that was killed closes its connection."""

        self.server = Server(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        """HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def entry(self, name: str) -> dict[str, object]:
        """A file as the tree has it."""
        return {"type": "file", "path": name, "size": self.files[name].stat().st_size, "oid": self.hashes[name][:40]}


@contextmanager
def hub_of(repository: str, folder: Path) -> Iterator[Hub]:
    """A `Hub` on a free port of 127.0.0.1."""
    made = Hub(repository, folder)
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        made.released.set()
        made.server.shutdown()
        made.server.server_close()
