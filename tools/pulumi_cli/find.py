"""Finds which parts of Pulumi this machine has, and which need a stand-in. Standard library only.

The CLI comes from, in this order: the user's installation (PATH, ~/.pulumi/bin), our download, our build. An installed
CLI counts only with Pulumi's own Python language host in its folder or on PATH. Without one it is a bare build, which
cannot run a program.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tools.paths import STANDINS, tools_cache

BUILT_VERSION = "3.259.0"
"""The CLI's version in tools/go/pulumi/go.mod."""
BUILT = f"pulumi-v{BUILT_VERSION}"
"""The cache's folder for the CLI built from Go modules."""
DOWNLOADED = "pulumi-official-v"
"""The start of the name of the cache's folder for an official CLI."""

COMMAND_MARK = "tools/pulumi_cli/command.py"
"""Text in our own `pulumi` command, which tells it from the real one."""

LANGUAGE_HOST = "pulumi-language-python"


@dataclass(frozen=True)
class Cli:
    """A Pulumi CLI: the executable and its origin (`installed`, `downloaded` or `built`)."""

    path: Path
    origin: str

    @property
    def has_language_host(self) -> bool:
        """Whether it comes with Pulumi's own Python language host."""
        return self.origin != "built"

    def sentence(self) -> str:
        """One line for the user."""
        word = {
            "installed": "installed on this machine",
            "downloaded": "official, downloaded",
            "built": f"built from Go modules, v{BUILT_VERSION}",
        }[self.origin]
        return f"Pulumi CLI: real, {word} ({self.path})"


@dataclass(frozen=True)
class Part:
    """A part of Pulumi other than the CLI: `real` is where the real one is; None means that `standin` replaces it."""

    title: str
    real: str | None
    standin: Path

    def sentence(self) -> str:
        """One line for the user."""
        if self.real is not None:
            return f"{self.title}: real ({self.real})"
        return f"{self.title}: STAND-IN ({self.standin}; what it lacks: tools/README.md)"


def find_cli(environ: Mapping[str, str] = os.environ) -> Cli | None:
    """The CLI to use, or None if there is none yet."""
    home = Path(environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    path = environ.get("PATH", "")
    for folder in [*path.split(os.pathsep), str(home / "bin")]:
        file = Path(folder or ".") / "pulumi"
        if _is_real(file) and not file.is_relative_to(tools_cache()) and _has_language_host(file, path):
            return Cli(file, "installed")
    for folder_path in sorted(tools_cache().glob(f"{DOWNLOADED}*"), reverse=True):
        if _is_real(folder_path / "pulumi"):
            return Cli(folder_path / "pulumi", "downloaded")
    built = tools_cache() / BUILT / "pulumi"
    return Cli(built, "built") if _is_real(built) else None


def parts(cli: Cli, environ: Mapping[str, str] = os.environ) -> list[Part]:
    """The language host, and each plugin that has a stand-in in `tools/standin/bin`."""
    host = "comes with the CLI" if cli.has_language_host else None
    found = [Part("language host python", host, STANDINS / "language")]
    for folder in sorted(STANDINS.iterdir()):
        if (folder / f"pulumi-resource-{folder.name}").is_file():  # not nvidia-smi's, which nobody has who asks not
            wanted = plugin_version(folder.name)
            title = f"plugin {folder.name} {wanted}".rstrip()
            found.append(Part(title, real_plugin(folder.name, wanted, environ), folder))
    return found


def plugin_version(name: str) -> str:
    """The plugin version that the installed SDK wants; "" if the SDK is not installed."""
    try:
        return version(f"pulumi-{name}")
    except PackageNotFoundError:
        return ""


def real_plugin(name: str, wanted: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Where the real plugin is: in Pulumi's plugin folder (the wanted version), or on PATH; None if in neither."""
    home = Path(environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    installed = home / "plugins" / f"resource-{name}-v{wanted}"
    if (installed / f"pulumi-resource-{name}").exists():
        return str(installed)
    on_path = shutil.which(f"pulumi-resource-{name}", path=environ.get("PATH", ""))
    if on_path and not Path(on_path).resolve().is_relative_to(STANDINS):
        return on_path
    return None


def _is_real(file: Path) -> bool:
    if not (file.is_file() and os.access(file, os.X_OK)):
        return False
    with file.open("rb") as handle:
        return COMMAND_MARK.encode() not in handle.read(4096)


def _has_language_host(cli: Path, path: str) -> bool:
    beside = cli.resolve().parent / LANGUAGE_HOST
    if beside.is_file():
        return True
    on_path = shutil.which(LANGUAGE_HOST, path=path)
    return bool(on_path) and not Path(str(on_path)).resolve().is_relative_to(STANDINS)
