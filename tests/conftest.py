"""What all tests share: a clean environment, and which files need a quiet machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

#: What `make test` leaves to `make test-long`: it needs a quiet machine, because it kills processes at moments that a busy
#: one misses, or many minutes.
LONG = (
    "cluster/test_live_changes.py",
    "cluster/test_resilience.py",
    "cluster/test_no_rebuild.py",
    "gateway/test_replicas.py",
)

#: Settings of the caller's shell that would change what the code under test does.
FOREIGN = (
    "AWS_",
    "PULUMI_",
    "RAY_",
    "VLLM_",
    "HF_",
    "HUGGING_FACE_",
    "MODELFLEET_",
    "KUBECONFIG",
    "NO_COLOR",
    "FORCE_COLOR",
)


# A busy machine is slow, not wrong: speed is measured by `make bench`.
settings.register_profile("modelfleet", deadline=None)
settings.load_profile("modelfleet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what only `make test-long` runs."""
    for item in items:
        if Path(item.fspath).relative_to(Path(__file__).parent).as_posix() in LONG:
            item.add_marker(pytest.mark.long)


def pytest_configure() -> None:
    """Take the caller's settings out of the environment, before any module reads them."""
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            del os.environ[name]
