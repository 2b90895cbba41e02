"""A TCP proxy on loopback that can hold back answers: the request has arrived, but the caller does not know it yet."""

from __future__ import annotations

import socket
import threading
from types import TracebackType


class SlowProxy:
    """Forwards to `port` of loopback. While it holds, requests pass and answers wait; `asked`: one has passed."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._flow = threading.Event()
        self._flow.set()
        self._marker = b""
        self.asked = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, marker: bytes) -> None:
        """Holds all answers once a request that contains `marker` has passed."""
        self._marker = marker
        self.asked.clear()

    def release(self) -> None:
        """Lets everything through again."""
        self._marker = b""
        self._flow.set()

    def __enter__(self) -> SlowProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_request: bool) -> None:
        try:
            while block := source.recv(65536):
                if not is_request:
                    self._flow.wait()
                elif self._marker and self._marker in block:
                    self._flow.clear()
                    self.asked.set()
                sink.sendall(block)
        except OSError:
            return  # the other side hung up
        finally:
            for end in (source, sink):
                end.close()
