"""The serving package, which runs next to the GPU, as a zip named by its content."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

from modelfleet import serving
from modelfleet.infra.planning.plan import CodeArtifact

#: Timestamp of every entry: the earliest that ZIP can express, so that equal code gives equal bytes.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
#: Ray drops the top-level folder of a `working_dir` if it is the only entry (`unzip_package` in Ray 2.60's
#: `ray/_private/runtime_env/packaging.py`), and `modelfleet` could not be imported. A file next to it prevents this.
BESIDE = ("README.txt", b"modelfleet's serving package. Without this file Ray would unpack modelfleet/ as `.`.\n")
#: The import root in the zip is empty: what the installed one offers (`Fleet`) does not run beside the GPU, and a
#: change to it must restart no model.
ROOT = ("modelfleet/__init__.py", b"")
SERVING = Path(serving.__file__).parent
#: Only checks and plans read the table, and only builds of images read the others. Left out, so that a new
#: accelerator or a corrected number restarts no model.
LEFT_OUT = frozenset(
    f"modelfleet/serving/{name}"
    for name in ("Dockerfile", "buildspec.yml", "mirror/Dockerfile", "config/data/accelerators.csv")
)


def code_artifact() -> CodeArtifact:
    """The code zip, named by the sha256 of its content."""
    return CodeArtifact(hashlib.sha256(build_code_zip()).hexdigest())


def build_code_zip(serving: Path = SERVING) -> bytes:
    """The serving package as a zip that Ray can unpack as a working_dir.

    The same files give the same bytes: entries are sorted and stored uncompressed, with fixed times and modes.
    """
    files = [
        (name, path.read_bytes())
        for path in sorted(serving.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
        if (name := f"modelfleet/serving/{path.relative_to(serving).as_posix()}") not in LEFT_OUT
    ]
    return zipped([BESIDE, ROOT, *files])


def zipped(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A zip of (name, content), not compressed: another version of zlib must not give other bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()
