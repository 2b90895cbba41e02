"""An HTTP GET to a port inside a pod, as `kubectl port-forward` reaches it: no NetworkPolicy is in the way."""

from __future__ import annotations

import http.client
from typing import Any, Final

from kubernetes.stream.ws_client import PortForward, WebSocket, get_websocket_url, websocket_proxycare

from modelfleet.infra.kubernetes.api import Api

#: Most of an answer that is read.
MOST_BYTES: Final = 64 * 2**20
FORBIDDEN: Final = 403


def get(api: Api, namespace: str, pod: str, port: int, path: str, seconds: float) -> str:
    """The answer's text; raises `OSError` with what is wrong, at the latest after about twice `seconds`.

    Whoever asks needs the right to `get` the subresource `pods/portforward`.
    """
    forward = _open(api, f"/api/v1/namespaces/{namespace}/pods/{pod}/portforward", port, seconds)
    try:
        connection = http.client.HTTPConnection(pod, port)
        connection.sock = forward.socket(port)
        connection.sock.settimeout(seconds)
        connection.request("GET", path, headers={"connection": "close"})
        answer = connection.getresponse()
        text = answer.read(MOST_BYTES).decode(errors="replace")
    except (http.client.HTTPException, ConnectionError) as error:
        said = " ".join(str(forward.error(port) or error or type(error).__name__).split())[:300]
        raise OSError(f"port {port} answers no HTTP: {said}") from None
    finally:
        forward.close()
    if answer.status != http.HTTPStatus.OK:
        raise OSError(f"returned {answer.status}")
    return text


def _open(api: Api, path: str, port: int, seconds: float) -> Any:
    """The client's own `portforward_call` takes certificates from files only; ours are in a TLS context."""
    client = api.client.client
    configuration = client.configuration
    url = get_websocket_url(f"{configuration.host}{path}", [("ports", str(port))])
    headers = ["sec-websocket-protocol: v4.channel.k8s.io"]
    headers += [f"{one['key']}: {one['value']}" for one in configuration.auth_settings().values() if one["value"]]
    options: dict[str, Any] = {"header": headers}
    if configuration.proxy or configuration.proxy_headers:
        options = websocket_proxycare(options, configuration, url, headers)
    tls: dict[str, Any] = {"context": client.rest_client.pool_manager.connection_pool_kw.get("ssl_context")}
    if configuration.tls_server_name:
        tls["server_hostname"] = configuration.tls_server_name
    socket = WebSocket(sslopt=tls if url.startswith("wss:") else None, skip_utf8_validation=False)
    socket.settimeout(seconds)
    try:
        socket.connect(url, **options)
    except Exception as error:  # noqa: BLE001 - the client's WebSocket library raises classes of its own, of no base
        if refused := getattr(error, "status_code", None):
            way_out = "; your account must be allowed to get pods/portforward" if refused == FORBIDDEN else ""
            raise OSError(f"the API server returned {refused} for port {port}{way_out}") from None
        raise OSError(" ".join(str(error).split())[:300]) from None
    socket.settimeout(None)  # the client's thread waits for either side, and our side has the limit
    return PortForward(socket, [port])
