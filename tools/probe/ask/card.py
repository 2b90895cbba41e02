"""A GPU that this machine does not have: what torch, Triton and vLLM are told when they ask for one."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfleet.serving.config.errors import SetupError
from tools.probe.ask import absent

GIB = 2**30
#: Environment variables, unless set: no network, one process, no noise.
VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}
#: An H100's, whatever the card: 227 KiB of shared memory for a block and 228 for a multiprocessor (CUDA C++ programming
#: guide, compute capability 9.0), 50 MiB of L2, 132 multiprocessors (NVIDIA's H100 architecture paper, SXM5).
SHARED_MEMORY, MULTIPROCESSOR_MEMORY, L2_CACHE, MULTIPROCESSORS = 227 * 2**10, 228 * 2**10, 50 * 2**20, 132


@dataclass(frozen=True)
class Card:
    """The pretended GPU: compute capability ("9.0"), GiB of memory, and how many of them there are."""

    capability: str = "9.0"
    memory_gib: float = 79.18
    count: int = 1

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor number of the compute capability."""
        major, _, minor = self.capability.partition(".")
        return int(major), int(minor)

    @property
    def name(self) -> str:
        """As the driver would call it: vLLM keeps tuned kernels by name."""
        return "NVIDIA H100 80GB HBM3" if self.version[0] == 9 else f"GPU of capability {self.capability}"

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.memory_gib * GIB)


class _Stream:
    """A CUDA stream or event on which nothing runs."""

    def __init__(self, *args: Any, **more: Any) -> None:
        pass


def pretend(card: Card) -> None:
    """Imports vLLM as if this machine had the card. Raises `SetupError` where vLLM for CUDA is not installed."""
    _load_driver()
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    # vLLM sets it when a config is complete; before that it would print warnings for every model.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())
    _tell_torch(card)
    _tell_triton(card)
    import xgrammar  # noqa: F401  it looks for a real `cuda` package, so it comes before the empty one

    absent.install()
    _tell_vllm(card)
    _check_models_here()
    _import_what_forks_need()


def _load_driver() -> None:
    """Compiled modules of vLLM and torch name the driver's functions: libcuda.c has the names and refuses all calls."""
    driver = Path(sys.prefix) / "stub" / "libcuda.so.1"
    if not driver.is_file() or importlib.util.find_spec("vllm") is None:
        raise SetupError(
            f"{sys.executable} has no vLLM for CUDA; run: python -m tools.probe.ask --setup FOLDER, then ask with "
            "FOLDER/bin/python -m tools.probe.ask"
        )
    ctypes.CDLL(str(driver), mode=ctypes.RTLD_GLOBAL)


def _tell_torch(card: Card) -> None:
    import torch

    major, minor = card.version
    properties = types.SimpleNamespace(
        name=card.name, major=major, minor=minor, total_memory=card.memory, is_integrated=False, warp_size=32,
        multi_processor_count=MULTIPROCESSORS, shared_memory_per_block_optin=SHARED_MEMORY,
        shared_memory_per_multiprocessor=MULTIPROCESSOR_MEMORY, L2_cache_size=L2_CACHE,
    )  # fmt: skip
    cuda = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: card.count
    cuda.current_device = torch.accelerator.current_device_index = lambda: 0
    cuda.get_device_properties = lambda device=None: properties
    cuda.get_device_capability = lambda device=None: card.version
    cuda.get_device_name = lambda device=None: card.name
    cuda.Stream = cuda.Event = _Stream
    cuda.current_stream = lambda device=None: _Stream()


def _tell_triton(card: Card) -> None:
    import triton
    from triton.backends.compiler import GPUTarget

    major, minor = card.version
    kernels = {
        "max_shared_mem": SHARED_MEMORY, "multiprocessor_count": MULTIPROCESSORS,
        "max_num_regs": 65_536, "warpSize": 32,
    }  # fmt: skip
    triton.runtime.driver.set_active(
        types.SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 10 * major + minor, 32),
            get_current_device=lambda: 0,
            utils=types.SimpleNamespace(get_device_properties=lambda device: kernels),
        )
    )


def _tell_vllm(card: Card) -> None:
    import vllm.platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    communicator = "vllm.distributed.device_communicators.base_device_communicator.DeviceCommunicatorBase"

    class Pretended(CudaPlatformBase):
        """vLLM's CUDA platform with answers instead of a driver."""

        get_device_capability = classmethod(lambda cls, device_id=0: DeviceCapability(*card.version))
        get_device_name = classmethod(lambda cls, device_id=0: card.name)
        get_device_uuid = classmethod(lambda cls, device_id=0: f"GPU-{device_id}")
        get_device_total_memory = classmethod(lambda cls, device_id=0: card.memory)
        is_fully_connected = classmethod(lambda cls, *devices: True)
        device_count = classmethod(lambda cls: card.count)
        get_device_communicator_cls = classmethod(lambda cls: communicator)

    vllm.platforms._current_platform = Pretended()


def _check_models_here() -> None:
    """vLLM looks at a model's class in a process of its own, and keeps what it saw: that one would know no card."""
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()
    registry._LazyRegisteredModel._load_modelinfo_from_cache = lambda self, key: None
    registry._LazyRegisteredModel._save_modelinfo_to_cache = lambda self, info, key: None


def _import_what_forks_need() -> None:
    """Ten seconds of imports, once and not in each fork."""
    import torch
    import vllm.engine.arg_utils
    import vllm.model_executor.model_loader.utils
    import vllm.v1.core.kv_cache_utils
    import vllm.v1.worker.gpu.attn_utils  # noqa: F401

    # Tables that stay in host RAM are seen from the GPU through this operator, which has no meta kernel of its own.
    torch.library.impl("_C::get_cuda_view_from_cpu_tensor", "Meta", lambda tensor: tensor)
