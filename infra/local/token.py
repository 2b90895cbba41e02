"""The token of a local stack's Ray, in a file that only this user may read.

Without it every program on the machine, whoever runs it, may submit jobs to Ray's loopback ports: code that runs as
this user. Ray asks for the token at the dashboard, at its agent and at every gRPC port (Ray 2.60,
https://docs.ray.io/en/latest/ray-security/token-auth.html); its metrics and Serve's HTTP ports have no such check.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

#: File in the stack's run-time folder.
TOKEN_FILE = "ray.token"  # noqa: S105 - a name
TOKEN_BYTES = 32


def token_file(folder: str | Path) -> Path:
    """Where the token of the stack with run-time folder `folder` is; absolute, for processes in other folders."""
    return Path(folder).resolve() / TOKEN_FILE


def make_token(folder: str | Path) -> None:
    """Writes a new token. The file is never open to others, not even for a moment."""
    path = token_file(folder)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(TOKEN_BYTES))


def environment(folder: str | Path) -> dict[str, str]:
    """What makes Ray and all that it starts ask for the token and show it; the token itself is in no environment."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file(folder))}


def headers(folder: str | Path) -> dict[str, str]:
    """The header that a request to Ray needs; none where there is no token yet."""
    try:
        return {"Authorization": f"Bearer {token_file(folder).read_text(encoding='ascii').strip()}"}
    except OSError:
        return {}
