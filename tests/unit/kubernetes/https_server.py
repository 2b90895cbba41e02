"""As much of an API server as listing nodes needs, over HTTPS, with its own certificates."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ANSWERS: dict[str, Any] = {
    "/version": {"gitVersion": "v1.36.3"},
    "/apis": {"kind": "APIGroupList", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "resources": [{"name": "nodes", "kind": "Node", "namespaced": False, "verbs": ["list"]}],
    },
    "/api/v1/nodes": {"kind": "NodeList", "items": [{"metadata": {"name": "one"}}]},
}


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key."""

    made: x509.Certificate
    secret: ec.EllipticCurvePrivateKey

    @property
    def certificate(self) -> bytes:
        return self.made.public_bytes(serialization.Encoding.PEM)

    @property
    def key(self) -> bytes:
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return self.secret.private_bytes(*form)


def certificate(name: str, authority: Certificate | None = None) -> Certificate:
    """For 127.0.0.1, signed by `authority` or by itself; without key identifiers, as those of EKS clusters."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.made.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .sign(authority.secret if authority else key, hashes.SHA256())
    )
    return Certificate(made, key)


class HttpsServer:
    """Returns `answers` by path; `users` are the common names and credentials of the clients."""

    def __init__(self, folder: Path, *, client: Certificate | None = None, token: str | None = None) -> None:
        self.answers: dict[str, Any] = dict(ANSWERS)
        self.users: list[str] = []
        self.token = token
        self.authority = certificate("authority")
        own = certificate("server", self.authority)
        handler = type("Handler", (_Handler,), {"server_of_test": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        (folder / "server.pem").write_bytes(own.certificate + own.key)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "server.pem")
        if client is not None:
            tls.verify_mode = ssl.CERT_REQUIRED
            tls.load_verify_locations(cadata=client.certificate.decode())
        self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def cluster(self) -> dict[str, str]:
        """The cluster's section of a kubeconfig."""
        return {"server": self.url, "certificate-authority-data": base64.b64encode(self.authority.certificate).decode()}


class _Handler(BaseHTTPRequestHandler):
    server_of_test: HttpsServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server_of_test
        peer = self.connection.getpeercert() or {}  # type: ignore[attr-defined]
        names = [value for part in peer.get("subject", ()) for key, value in part if key == "commonName"]
        server.users += [*names, self.headers.get("Authorization", "")]
        if server.token is not None and self.headers.get("Authorization") != f"Bearer {server.token}":
            self._answer(401, {"kind": "Status", "message": "Unauthorized", "reason": "Unauthorized"})
        elif self.path.partition("?")[0] in server.answers:
            self._answer(200, server.answers[self.path.partition("?")[0]])
        else:
            self._answer(404, "404 page not found")

    def _answer(self, status: int, content: Any) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""
