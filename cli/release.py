"""A release as a pinned requirement: version, the wheel's hash, and everything below it with hashes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modelfleet.serving.config.errors import SetupError

NAME = "modelfleet"
WHEEL = re.compile(r"modelfleet-(?P<version>[^-]+)-py3-none-any\.whl")


@dataclass(frozen=True)
class Release:
    """A version, where its wheel is (None: the package index), and the wheel's sha256."""

    version: str
    url: str | None
    sha256: str

    def requirement(self, extras: str) -> str:
        """The line of a requirements file."""
        named = f"{NAME}[{extras}]"
        what = f"{named} @ {self.url}" if self.url else f"{named}=={self.version}"
        return f"{what} \\\n    --hash=sha256:{self.sha256}"


def installed_version() -> str:
    """The version of this modelfleet."""
    return metadata.version(NAME)


def installed_release() -> Release:
    """The release that runs now; raises `SetupError` for a checkout or where pip kept no hash."""
    text = metadata.distribution(NAME).read_text("direct_url.json")
    if text is None:
        raise SetupError(
            f"{NAME} {installed_version()} was installed from a package index, which leaves no hash of its wheel here; "
            f"name the wheel: --wheel https://…/{NAME}-{installed_version()}-py3-none-any.whl"
        )
    origin = json.loads(text)
    if "archive_info" not in origin:
        raise SetupError(
            f"this {NAME} runs from a checkout, {unquote(urlsplit(origin['url']).path)}, which no fleet can pin; run "
            f"`make release` there and name the wheel: --wheel dist/{NAME}-{installed_version()}-py3-none-any.whl"
        )
    path = Path(unquote(urlsplit(origin["url"]).path))
    hashes = origin["archive_info"].get("hashes") or {}
    if "sha256" not in hashes and origin["url"].startswith("file:"):
        return release_of(path)
    return Release(installed_version(), origin["url"], hashes["sha256"])


def release_of(wheel: Path) -> Release:
    """The release in a wheel on the disk; raises `SetupError` when it is not one of ours."""
    found = WHEEL.fullmatch(wheel.name)
    if found is None or not wheel.is_file():
        raise SetupError(f"{wheel} is not a wheel of {NAME}: expected a file {NAME}-VERSION-py3-none-any.whl")
    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Release(found["version"], wheel.resolve().as_uri(), digest)


def lock_name(*, local: bool) -> str:
    """The file of a wheel with the pinned requirements; `local` adds vLLM's CPU build and an S3 emulator."""
    return f"{NAME}/requirements/{'fleet' if local else 'operator'}.txt"


def requirements(release: Release, lock: str, *, local: bool) -> str:
    """The text of a fleet's requirements.txt: the release, and everything below it with versions and hashes.

    `lock` is the text of the release's `lock_name(local)`.
    """
    extras = "local,operator" if local else "operator"
    head = f"# {NAME} {release.version} and everything below it. `{NAME} upgrade` writes this file."
    return f"{head}\n{release.requirement(extras)}\n{lock}"
