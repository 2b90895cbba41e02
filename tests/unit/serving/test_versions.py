"""A replica on another Ray or vLLM says so at once, and names the image."""

from __future__ import annotations

import asyncio
import re
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from serving import replica, weights
from serving.config.errors import SetupError
from serving.versions import PINNED, check_versions
from tests.cluster.fleet import model

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


def test_a_replica_on_other_versions_ends_before_it_fetches_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def differs() -> None:
        raise SetupError("this image has ray 2.59.1, made for 2.60.0")

    def fetched(*arguments: object) -> str:
        raise AssertionError("it fetched the weights first")

    monkeypatch.setattr(replica, "check_versions", differs)
    monkeypatch.setattr(replica, "bind_to_node_address_only", lambda: None)
    monkeypatch.setattr(weights, "resolve", fetched)
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)
    started = replica.VllmReplica(model("org/one", "L4"), {})
    with pytest.raises(SetupError, match=r"ray 2\.59\.1") as caught:
        asyncio.run(started.__serve_build_asgi_app__())
    assert sys.tracebacklimit == 0 and caught.value.__cause__ is None, "Serve shows one line, not a traceback"
