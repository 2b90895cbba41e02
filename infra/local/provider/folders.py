"""A stack's folders in the shared temporary folder; one that another user made is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from modelfleet.infra.local.runtime import short_folder
from modelfleet.infra.provider import Refused


def run_folder(folder: str, role: str) -> Path:
    """Makes the stack's short folder for `role`, for this user only; raises `Refused` when it is another user's."""
    made = short_folder(folder, role)
    made.mkdir(mode=0o700, exist_ok=True)
    status = made.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise Refused(f"{made} belongs to another user, and this stack puts sockets there; remove it, or set TMPDIR")
    made.chmod(0o700)
    return made
