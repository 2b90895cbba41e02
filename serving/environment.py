"""The environment of a process that runs vLLM, before vLLM is imported."""

from __future__ import annotations

import os
from pathlib import Path

from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import actor_options, stages_of
from modelfleet.serving.engine_args import DEFAULT_ENVIRONMENT
from modelfleet.serving.seal import cache_environment

STAGES_ENVIRONMENT = {
    # EC2 holds one TCP flow to 5 Gbit/s outside a cluster placement group (AWS: EC2 instance network bandwidth). NCCL
    # opens these 16 by itself where it reads EC2's vendor id below /sys (NCCL `transport/net_socket.cc`); a pod's card
    # is a veth, which has none.
    "NCCL_SOCKET_NTHREADS": "2",
    "NCCL_NSOCKS_PERTHREAD": "8",
}
"""More of it in a replica over several nodes, with the same precedence as `DEFAULT_ENVIRONMENT`."""


def prepare(model: ModelConfig) -> None:
    """Sets our defaults, and lifts Ray's limit of threads."""
    own = STAGES_ENVIRONMENT if stages_of(model) > 1 else {}
    for name, value in {**DEFAULT_ENVIRONMENT, **own}.items():
        os.environ.setdefault(name, value)
    lift_thread_limit(model)


def place_caches() -> None:
    """Puts all compile caches below the node's VLLM_CACHE_ROOT, which a pod has and this machine need not have."""
    if (root := os.environ.get("VLLM_CACHE_ROOT")) is not None:
        for name, value in cache_environment(Path(root)).items():
            os.environ.setdefault(name, value)


def lift_thread_limit(model: ModelConfig) -> None:
    """Drops the OMP_NUM_THREADS that Ray set in a replica with GPUs, unless the model file set it.

    vLLM then loads weights with all CPUs of the node's share and serves with one thread; a value that it finds stays
    for both (vLLM 0.32 `vllm/utils/torch_utils.py`, `vllm/v1/engine/utils.py`). Before torch is imported.
    """
    given = actor_options(model)["runtime_env"]["env_vars"]
    if model.scaling_config.num_gpus_per_worker and "OMP_NUM_THREADS" not in given:
        os.environ.pop("OMP_NUM_THREADS", None)
