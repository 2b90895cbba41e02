"""The code zip as Ray unpacks it, imported by a Python that does not know this checkout."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

from modelfleet.infra.reading.code import build_code_zip
from tests.bare_python import bare_python


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_python(tmp_path_factory.mktemp("bare"))


def imported(python: Path, module: str, **environ: str) -> subprocess.CompletedProcess[str]:
    code = f"import {module}; print({module}.__file__)"
    return subprocess.run([python, "-P", "-c", code], env=environ, capture_output=True, text=True, timeout=120)


def test_the_bare_python_has_the_packages_and_not_the_checkout(python: Path) -> None:
    """Otherwise the test below would prove nothing."""
    assert imported(python, "pydantic").stdout.startswith(sysconfig.get_path("purelib"))
    assert "No module named 'modelfleet'" in imported(python, "modelfleet").stderr


def test_the_code_zip_can_be_imported_after_rays_own_unpacking(python: Path, tmp_path: Path) -> None:
    """Ray drops the top folder of a zip if there is only one."""
    from ray._private.runtime_env.packaging import unzip_package

    archive, folder = tmp_path / "code.zip", tmp_path / "working_dir"
    archive.write_bytes(build_code_zip())
    unzip_package(str(archive), str(folder), remove_top_level_directory=True, unlink_zip=True)
    # A working_dir is the first entry of PYTHONPATH (`set_pythonpath_in_context`).
    done = imported(python, "modelfleet.serving.app", PYTHONPATH=str(folder))
    assert done.stdout.strip() == str(folder / "modelfleet" / "serving" / "app.py"), done.stderr
