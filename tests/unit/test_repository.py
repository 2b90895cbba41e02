"""The repository's own promises, on which a newcomer relies before reading any code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from modelfleet.infra import names

ROOT = Path(__file__).parents[2]


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


@pytest.mark.parametrize(
    "name",
    [
        *("infra", "stacks", "serving", "models", "cli", "tools", "tests"),
        *("Pulumi.yaml", "pyproject.toml", "Makefile", ".ci/run"),
        *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"),
    ],
)
def test_the_layout_that_the_design_promises_is_there(name: str) -> None:
    assert (ROOT / name).exists()


def test_no_file_names_a_package_index() -> None:
    pattern = re.compile(rb"https?://(pypi\.org|files\.pythonhosted\.org|proxy\.golang\.org|registry\.npmjs\.org)")
    guilty = [p for p in tracked() if p != Path(__file__) and pattern.search(p.read_bytes())]
    assert not guilty, "lock files are used on networks with different indexes"


def test_every_pinned_requirement_has_a_hash() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        pins = [line for line in path.read_text().splitlines() if re.match(r"^[A-Za-z0-9]", line)]
        assert pins, path
        bare = [pin for pin in pins if not pin.endswith("\\")]
        assert not bare, f"{path}: {bare} would be installed unchecked"


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_link_in_the_documents_leads_to_a_file() -> None:
    broken = []
    for path in tracked():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text()):
            if not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)} -> {target}")
    assert not broken


def test_every_python_file_under_tests_is_collected_or_a_helper() -> None:
    helpers = {"conftest.py", "__init__.py"}
    for path in (ROOT / "tests").rglob("*.py"):
        collected = path.name.startswith("test_")
        if collected or path.name in helpers:
            continue
        users = [p for p in (ROOT / "tests").rglob("*.py") if p != path and path.stem in p.read_text()]
        assert users, f"nothing runs or imports {path}"


def test_a_label_and_a_resource_are_spelled_once() -> None:
    """Otherwise nodes could have one spelling, and pods and policies look for another."""
    spelled = [value for value in vars(names).values() if isinstance(value, str) and "." in value and "/" in value]
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("infra", "cli", "doctor", "serving")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in spelled
        if path.name != "names.py" and f'"{name}"' in path.read_text()
    ]
    assert "nvidia.com/gpu" in spelled and not found, "import it from infra/names.py"
