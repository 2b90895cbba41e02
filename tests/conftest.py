"""What all tests share: a clean environment."""

from __future__ import annotations

import os

from hypothesis import settings

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


def pytest_configure() -> None:
    """Take the caller's settings out of the environment, before any module reads them."""
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            del os.environ[name]
