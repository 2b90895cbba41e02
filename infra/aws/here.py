"""What this machine has for a cluster: the command that makes its tokens, and a way to its API server."""

from __future__ import annotations

import shutil
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

CONNECT_TIMEOUT_S = 5.0
HTTPS_PORT = 443


def has_aws_command() -> bool:
    """Whether `aws` is on PATH: a kubeconfig of EKS gets its tokens from `aws eks get-token`."""
    return shutil.which("aws") is not None


def why_unreachable(endpoint: str | None) -> str | None:
    """Why no TCP connection to an endpoint such as `https://….eks.amazonaws.com` can be made; None if one can.

    None too where the answer would say nothing: the endpoint is still being made, or requests go through a proxy.
    """
    place = urlsplit(endpoint or "")
    if not place.hostname or ("https" in getproxies() and not proxy_bypass(place.hostname)):
        return None
    try:
        socket.create_connection((place.hostname, place.port or HTTPS_PORT), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return f"{place.hostname}: {error.strerror or error}"
    return None
