"""Replicas that share a GPU start one after the other.

vLLM measures the card's free memory before and after it profiles. What another engine takes meanwhile it counts as its
own, and gets fewer blocks or does not start (vllm#55827: 1.84 instead of 4.72 GiB of KV cache); what another one frees
ends it (vllm#56830).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from modelfleet.serving.config.schema import GPU_PARTS, ModelConfig
from modelfleet.serving.errors import EngineError

#: Seconds that a replica waits before it says so.
NOTICED_S = 2.0


@asynccontextmanager
async def turn_of(model: ModelConfig, report: Callable[[str], None]) -> AsyncIterator[bool]:
    """Where the model has a part of a GPU, no other replica starts on this process's card meanwhile; False elsewhere.

    Raises `EngineError` where the card or its lock is not to be had.
    """
    if model.scaling_config.num_gpus_per_worker not in GPU_PARTS:
        yield False
        return
    turn = turn_on(own_card(), report)
    await asyncio.to_thread(turn.__enter__)
    try:
        yield True
    finally:
        turn.__exit__(None, None, None)


@contextmanager
def turn_on(uuid: str, report: Callable[[str], None], folder: Path | None = None) -> Iterator[None]:
    """Waits until no other replica of this node starts on the card with this UUID; theirs wait until the end of this.

    The lock is the kernel's, so it ends with the process. Raises `EngineError` when its file cannot be opened.
    """
    path = (folder or Path(tempfile.gettempdir())) / f"modelfleet-{uuid}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EngineError(f"the lock of card {uuid} cannot be opened: {error}; is {path} another user's?") from None
    try:
        begun = time.monotonic()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if (waited := time.monotonic() - begun) > NOTICED_S:
            report(f"waited {waited:.0f} s for another replica that started on card {uuid}")
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # to close it ends nothing where vLLM forked a process that has it, too
        os.close(descriptor)


def own_card() -> str:
    """NVML's UUID of the one card that this process sees; raises `EngineError` when NVML does not say it.

    Ray names it in CUDA_VISIBLE_DEVICES, by its number among the node's cards (in NVML's order: `RAY_ENVIRONMENT`) or
    by its UUID.
    """
    import ray._private.thirdparty.pynvml as nvml  # Ray's copy, as in `card.py`

    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if not seen.isdecimal():
        return seen
    try:
        nvml.nvmlInit()
        uuid = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(int(seen)))
        nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise EngineError(f"NVML does not know card {seen}: {error}; look at the node's driver") from None
    return str(uuid.decode() if isinstance(uuid, bytes) else uuid)
