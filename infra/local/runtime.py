"""Where a local stack keeps what only this machine knows: sockets, Ray's folder, the gateway's files."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from infra.gateway import Runtime

#: Paths of unix sockets may have 107 bytes, of which Ray's own part takes about 64.
MAX_LENGTH = 40


def short_folder(folder: str, role: str) -> Path:
    """A short folder for sockets: the same for every run of the stack with run-time folder `folder`.

    It is made by `infra.local.provider.folders`, which refuses one that belongs to somebody else.
    """
    digest = hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:8]
    name = f"modelfleet-{os.getuid()}-{digest}-{role}"
    chosen = Path(tempfile.gettempdir()) / name
    return chosen if len(str(chosen)) <= MAX_LENGTH else Path("/tmp") / name  # noqa: S108 - checked when it is made


def gateway_runtime(folder: str, port: int, metrics_port: int) -> Runtime:
    """Addresses and folders of the stack's gateway."""
    sockets = short_folder(folder, "gw")
    return Runtime(
        bind=f"127.0.0.1:{port}",
        folder=str(Path(folder).resolve() / "gateway"),
        run_folder=str(sockets),
        key_map=str(sockets / "keys.map"),
        metrics_bind=f"127.0.0.1:{metrics_port}",
        threads=1,
    )
