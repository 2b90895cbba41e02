"""A replica on another Ray or vLLM says so at once, and names the image."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from serving.config.errors import SetupError
from serving.versions import PINNED, check_versions

LOCK = (Path(__file__).parents[3] / "requirements" / "cluster.txt").read_text()


def test_the_pinned_versions_are_those_of_the_lock_file() -> None:
    for name, wanted in PINNED.items():
        assert re.search(rf"^{name}==([^ ;]+)", LOCK, re.MULTILINE)[1] == wanted  # type: ignore[index]


def test_this_environment_is_the_pinned_one() -> None:
    check_versions()


def test_a_build_tag_is_no_difference() -> None:
    check_versions({"ray": "2.60.0", "vllm": "0.32.0+cu130"}.__getitem__)


def test_everything_that_differs_is_said_at_once() -> None:
    def installed(name: str) -> str:
        if name == "ray":
            return "2.59.1"
        raise PackageNotFoundError(name)

    with pytest.raises(
        SetupError, match=r"ray 2\.59\.1, made for 2\.60\.0; vllm is missing, made for 0\.32\.0\. Build"
    ):
        check_versions(installed)
