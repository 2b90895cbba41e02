"""A Python with the installed packages but without this checkout, as in a pod's image.

`make setup` installs the project as editable: a `.pth` file lets every Python of `.venv` find `serving` and `infra`
here. A pod has only the code zip, so this Python starts each process that represents a pod.
"""

from __future__ import annotations

import io
import sysconfig
import venv
import zipfile
from pathlib import Path

from modelfleet.infra.reading.code import build_code_zip


def bare_python(folder: Path) -> Path:
    """The interpreter of a new virtual environment in `folder` that sees the packages of this one.

    Python reads `.pth` files only in a site folder, not in the folders that they name: it finds the packages, but not
    the editable install next to them.
    """
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib"))
    inside = folder / packages.relative_to(sysconfig.get_path("data"))
    (inside / "packages.pth").write_text(f"{packages}\n")
    return folder / "bin" / "python"


def code_with(module: Path) -> bytes:
    """The code zip and one module of a test at its top, for an `import_path` of that module."""
    buffer = io.BytesIO(build_code_zip())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.write(module, module.name)
    return buffer.getvalue()
