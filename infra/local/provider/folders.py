"""Folders in the shared temporary folder that nobody else can have put there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from infra.local.runtime import short_folder
from infra.provider import Refused


def run_folder(folder: str, role: str) -> Path:
    """Makes the stack's short folder for `role`, for this user only; another user's is refused."""
    made = short_folder(folder, role)
    made.mkdir(mode=0o700, exist_ok=True)
    status = made.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise Refused(f"{made} belongs to somebody else, and sockets of this stack go there; remove it, or set TMPDIR")
    made.chmod(0o700)
    return made
