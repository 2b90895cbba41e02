"""The environment of a process that runs vLLM, before vLLM is imported."""

from __future__ import annotations

import os

from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import actor_options
from modelfleet.serving.engine_args import DEFAULT_ENVIRONMENT


def prepare(model: ModelConfig) -> None:
    """Sets our defaults, and lifts Ray's limit of threads."""
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    lift_thread_limit(model)


def lift_thread_limit(model: ModelConfig) -> None:
    """Drops the OMP_NUM_THREADS that Ray set in a replica with GPUs, unless the model file set it.

    vLLM then loads weights with all CPUs of the node's share and serves with one thread; a value that it finds stays
    for both (vLLM 0.32 `vllm/utils/torch_utils.py`, `vllm/v1/engine/utils.py`). Before torch is imported.
    """
    given = actor_options(model)["runtime_env"]["env_vars"]
    if model.scaling_config.num_gpus_per_worker and "OMP_NUM_THREADS" not in given:
        os.environ.pop("OMP_NUM_THREADS", None)
