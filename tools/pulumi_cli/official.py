"""Official downloads: the CLI, with pinned version and hash, and the provider plugins, through the CLI itself.

If the network blocks them, one line says so, and later runs do not try again for a day.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from modelfleet.serving.config.errors import SetupError
from tools.cache import once
from tools.paths import tools_cache
from tools.progress import Step, say
from tools.pulumi_cli.find import DOWNLOADED, plugin_version, real_plugin

SITE = "https://get.pulumi.com"
PROBE_TIMEOUT_SECONDS = 4.0
READ_TIMEOUT_SECONDS = 15.0
PLUGIN_TIMEOUT_SECONDS = 600.0
ASK_AGAIN_AFTER_SECONDS = 24 * 3600.0


class Unreachable(Exception):
    """The official site cannot be reached from here; the text is the reason."""


@dataclass(frozen=True)
class Release:
    """One official archive: its version, Pulumi's name of the platform and the sha256 of the file."""

    version: str
    platform: str
    sha256: str

    @property
    def url(self) -> str:
        """Where the archive is."""
        return f"{SITE}/releases/sdk/pulumi-v{self.version}-{self.platform}.tar.gz"


RELEASES = {
    ("Linux", "x86_64"): Release(
        # As pinned by a public build recipe, looked up 2026-11-24. With a wrong hash, the CLI is built instead.
        "3.255.0",
        "linux-x64",
        "cf559568e2c32f7fae56ea3de8ae5fa48973ba8c5aa9dd2b3dc0c8898fe50dba",
    ),
}
"""The archives with a known hash. On any other platform the CLI is built."""


def release_for_this_machine() -> Release | None:
    """The archive for this platform, or None if no hash is pinned for it."""
    return RELEASES.get((platform.system(), platform.machine()))


def check_reachable(*, again: bool = False) -> None:
    """Raises `Unreachable` if the official site does not answer now, or did not within the last day."""
    remembered = _remembered()
    if not again and remembered and time.time() - remembered[0] < ASK_AGAIN_AFTER_SECONDS:
        raise Unreachable(f"{remembered[1]}; tried again after a day, or now with: python -m tools.get --again")
    try:
        with urllib.request.urlopen(urllib.request.Request(SITE, method="HEAD"), timeout=PROBE_TIMEOUT_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        if error.code in (403, 407, 502, 503, 504):  # the answers of proxies that block the site
            _remember(reason := f"{SITE} answers {error.code}")
            raise Unreachable(reason) from error
    except (OSError, ValueError) as error:
        reason = f"{SITE} cannot be reached ({getattr(error, 'reason', error)})"
        _remember(reason)
        raise Unreachable(reason) from error
    _notes().unlink(missing_ok=True)


def download_cli(release: Release) -> Path:
    """Returns the folder with the official CLI and its language hosts. Raises `Unreachable` or `SetupError`."""

    def make(part: Path) -> None:
        archive = part / "archive.tar.gz"
        with Step(f"downloading the official Pulumi CLI v{release.version}") as step:
            _download(release, archive, step)
        with tarfile.open(archive) as tar:
            for member in tar:
                member.name = member.name.partition("/")[2]
                if member.name:
                    tar.extract(member, part, filter="data")
        archive.unlink()
        if not (part / "pulumi").is_file():
            raise SetupError(f"{release.url} does not contain the executable 'pulumi'")

    return once(
        f"{DOWNLOADED}{release.version}",
        make,
        waiting=lambda: say("waiting for another run that is downloading the CLI"),
    )


def install_plugin(cli: Path, name: str) -> bool:
    """Has the CLI install the plugin version that the SDK wants; returns whether the real plugin is installed."""
    wanted = plugin_version(name)
    if not wanted:
        return False
    if real_plugin(name, wanted):
        return True
    command = [str(cli), "plugin", "install", "resource", name, wanted]
    try:
        with Step(f"installing the Pulumi plugin {name} {wanted}"):
            ran = subprocess.run(command, capture_output=True, text=True, timeout=PLUGIN_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        say(f"plugin {name} {wanted}: gave up installing it after {PLUGIN_TIMEOUT_SECONDS:.0f} s")
        return False
    if ran.returncode != 0:
        reason = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
        say(f"plugin {name} {wanted}: not installed ({reason})")
    return real_plugin(name, wanted) is not None


def _download(release: Release, archive: Path, step: Step) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        with (
            urllib.request.urlopen(release.url, timeout=READ_TIMEOUT_SECONDS) as answer,
            archive.open("wb") as file,
        ):
            total = int(answer.headers.get("Content-Length") or 0)
            while block := answer.read(1 << 20):
                file.write(block)
                digest.update(block)
                size += len(block)
                step.detail(f"{size >> 20} of {total >> 20} MiB" if total else f"{size >> 20} MiB")
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise Unreachable(f"{release.url}: {getattr(error, 'reason', error)}") from error
    if digest.hexdigest() != release.sha256:
        raise Unreachable(
            f"{release.url} is not the pinned file, so it is not used: "
            f"found sha256 {digest.hexdigest()}, expected {release.sha256}"
        )


def _notes() -> Path:
    return tools_cache() / "unreachable.json"


def _remembered() -> tuple[float, str] | None:
    try:
        note = json.loads(_notes().read_text())
        return float(note["at"]), str(note["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(reason: str) -> None:
    _notes().parent.mkdir(parents=True, exist_ok=True)
    _notes().write_text(json.dumps({"at": time.time(), "reason": reason}))
