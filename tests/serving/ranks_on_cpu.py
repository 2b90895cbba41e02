"""A plugin of vLLM: the two collectives by which ranks share experts, which its CPU build lacks, made of torch's own.

Without them the first request ends the engine (vLLM 0.32 `cpu_communicator.py` has no `all_gatherv`). Only a test has
this; model files with ranks on CPUs are refused.
"""

from __future__ import annotations

from typing import Any

#: What makes it a plugin where this module's folder is on the path.
ENTRY_POINTS = "[vllm.general_plugins]\nranks_on_cpu = ranks_on_cpu:register\n"
METADATA = "Metadata-Version: 2.1\nName: ranks-on-cpu\nVersion: 1\n"


def register() -> None:
    """Called by vLLM in each of its processes."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    CpuCommunicator.all_gatherv = all_gatherv
    CpuCommunicator.reduce_scatterv = reduce_scatterv


def all_gatherv(self: Any, input_: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
    """The rows of all ranks, of which each has its own number."""
    import torch
    import torch.distributed as dist

    assert dim == 0
    if isinstance(input_, list):
        return [all_gatherv(self, one, dim, sizes) for one in input_]
    sizes = sizes or [len(input_)] * self.world_size
    padded = input_.new_zeros((max(sizes), *input_.shape[1:]))
    padded[: len(input_)] = input_
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=self.device_group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def reduce_scatterv(self: Any, input_: Any, dim: int = -1, sizes: list[int] | None = None) -> Any:
    """This rank's rows of the sum over all ranks."""
    import torch.distributed as dist

    assert dim == 0
    sizes = sizes or [len(input_) // self.world_size] * self.world_size
    whole = input_.clone()
    dist.all_reduce(whole, group=self.device_group)
    begin = sum(sizes[: self.rank_in_group])
    return whole[begin : begin + sizes[self.rank_in_group]]
