"""Whose program is at the other end of a connection on this machine, and an ASGI middleware that asks it.

A port on the loopback address is open to every user of the machine. Linux says whose each connection is, in one message
(https://man7.org/linux/man-pages/man7/sock_diag.7.html). Ray Serve adds `middlewares()` to its own HTTP server and to
each replica's (Ray 2.60 `configure_http_middlewares`). Where the system does not say it, nothing is asked.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Receive, Scope, Send

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST = 4, 20, 1
"""From linux/netlink.h and linux/sock_diag.h."""

ESTABLISHED = 1
"""State of an open connection (linux/tcp_states.h)."""

HEADER = struct.Struct("=IHHII")
"""`struct nlmsghdr`: length, type, flags, number, process."""

ASKED = struct.Struct("!BBBxI HH4s12x4s12xIII")
"""`struct inet_diag_req_v2`: family, protocol, extensions, states, then ports and addresses of both ends, interface,
cookie. Ports and addresses are in network order; the rest is all zeros or all ones, so its order does not matter."""

ANSWER_STATE, ANSWER_UID = 1, 64
"""Bytes of `struct inet_diag_msg` where state and user begin (linux/inet_diag.h)."""

LOOPBACK = socket.inet_aton("127.0.0.1")
ANY = 0xFFFFFFFF
TIMEOUT_S = 2.0
ROOT = 0
ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "modelfleet.serving.own_user.middlewares",
    # Otherwise uvicorn believes a client's X-Forwarded-For, which has no port.
    "FORWARDED_ALLOW_IPS": "",
}
"""What makes Ray Serve ask."""

REFUSAL = json.dumps(
    {
        "error": {
            "message": "This port is for the user who runs this stack; send requests to the gateway.",
            "type": "PermissionDeniedError",
            "param": None,
            "code": 403,
        }
    }
).encode()


def is_known() -> bool:
    """Whether this system says whose a connection is: asked about one of our own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            try:
                return owner_of(client.getsockname()[1], port) == os.geteuid()
            except (AttributeError, OSError):  # no netlink but on Linux
                return False


def may_connect(client_port: int, server_port: int) -> bool:
    """Whether the connection from `client_port` of the loopback address is this user's or root's."""
    return owner_of(client_port, server_port) in (ROOT, os.geteuid())


def owner_of(client_port: int, server_port: int) -> int | None:
    """The user who has the client's end of an open loopback connection; None where there is none.

    A connection that its client has closed counts as none: the kernel calls it root's, and nobody waits for an answer.
    """
    ends = ASKED.pack(
        socket.AF_INET, socket.IPPROTO_TCP, 0, ANY, client_port, server_port, LOOPBACK, LOOPBACK, 0, ANY, ANY
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(TIMEOUT_S)
        kernel.send(HEADER.pack(HEADER.size + len(ends), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0) + ends)
        answer = kernel.recv(4096)
    _, kind, _, _, _ = HEADER.unpack_from(answer)
    found = answer[HEADER.size :]
    if kind != SOCK_DIAG_BY_FAMILY or found[ANSWER_STATE] != ESTABLISHED:
        return None
    return int(struct.unpack_from("=I", found, ANSWER_UID)[0])


class OwnUserOnly:
    """Pure ASGI: answers 403 to programs of other users."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] not in ("http", "websocket") or _is_ours(scope.get("client"), scope.get("server")):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(REFUSAL)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": REFUSAL})


def _is_ours(client: Sequence[object] | None, server: Sequence[object] | None) -> bool:
    if not client or not server:
        return False
    return may_connect(int(str(client[1])), int(str(server[1])))


def middlewares() -> list[Middleware]:
    """What Ray Serve adds to its HTTP servers."""
    from starlette.middleware import Middleware

    return [Middleware(OwnUserOnly)] if is_known() else []
