"""The other GPUs of a model, and tensors that have a shape and no memory."""

from __future__ import annotations

from typing import Any


def join(ranks: int, rank: int, data_ranks: int) -> None:
    """vLLM's process groups of so many ranks, of which only one exists: torch's fake backend answers for the others.

    Of `data_ranks` of them, which vLLM reads from its config, it is the first.
    """
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from vllm.distributed import parallel_state
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    new_group = dist.new_group
    dist.new_group = lambda ranks=None, timeout=None, backend=None, **more: new_group(ranks, backend="fake", **more)
    parallel_state._node_count = lambda group: 1
    MessageQueue.create_from_process_group = classmethod(lambda cls, *args, **more: None)
    dist.init_process_group(backend="fake", store=FakeStore(), rank=rank, world_size=ranks * data_ranks)
    parallel_state.init_distributed_environment(
        world_size=ranks, rank=rank, local_rank=rank, distributed_init_method="fake", backend="fake"
    )
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=ranks, backend="fake")


def on_meta() -> Any:
    """A context in which tensors asked for on the GPU, or pinned in host RAM, are created on torch's meta device."""
    import torch
    from torch.overrides import TorchFunctionMode

    def on_gpu(device: Any) -> bool:
        return isinstance(device, str | torch.device) and str(device).startswith("cuda")

    class Redirect(TorchFunctionMode):
        def __torch_function__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
            device = kwargs.get("device")
            if on_gpu(device) or isinstance(device, int) or kwargs.get("pin_memory"):
                kwargs["device"] = "meta"
                kwargs.pop("pin_memory", None)
            if name in {"to", "_to"}:
                args = tuple("meta" if on_gpu(arg) else arg for arg in args)
            if name == "cuda":
                return args[0].to("meta")
            return function(*args, **kwargs)

    return Redirect()
