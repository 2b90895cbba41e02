"""A port of this machine's loopback leads to a pod's, through the API server, as `kubectl port-forward` does."""

from __future__ import annotations

import socket
import socketserver
import threading
from pathlib import Path

from kubernetes import config
from kubernetes.client import CoreV1Api
from kubernetes.stream import portforward

from tools.kubernetes.processes import Running


class PortForward(Running):
    """`with PortForward(kubeconfig, namespace, pod, 5000) as forward: forward.url`; `port` 0 takes a free one."""

    def __init__(self, kubeconfig: Path, namespace: str, pod: str, pod_port: int, *, port: int = 0) -> None:
        self._core = CoreV1Api(config.new_client_from_config(str(kubeconfig)))
        self._pod, self._namespace, self._pod_port = pod, namespace, pod_port
        self._lock = threading.Lock()
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", port), self._handler(), bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.allow_reuse_address = True

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        """Listen; every connection is one more to the pod, and what breaks one ends that one alone."""
        self._server.server_bind()
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Listen no more; open connections end with the process."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[socketserver.BaseRequestHandler]:
        connect = self._connect

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                there = connect()
                threading.Thread(target=_pump, args=(there, self.request), daemon=True).start()
                _pump(self.request, there)

        return Handler

    def _connect(self) -> socket.socket:
        with self._lock:  # the client puts a WebSocket in the place of its HTTP for the length of this call
            forward = portforward(
                self._core.connect_get_namespaced_pod_portforward,
                self._pod,
                self._namespace,
                ports=str(self._pod_port),
            )
        there: socket.socket = forward.socket(self._pod_port)
        there.setblocking(True)
        return there


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes; the end of one direction ends both, for the protocol knows no half-closed connection."""
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        return  # the other direction has closed it
    finally:
        for end in (source, target):
            end.close()
