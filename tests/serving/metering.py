"""Starts what the tests of usage share: a metered replica without Ray (`metered.py`), and a gateway's addresses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelfleet.infra.gateway import Runtime
from modelfleet.infra.planning.host_memory import with_host_memory
from modelfleet.serving.config.schema import ModelConfig
from tests.ports import free_port
from tests.serving.conftest import EAGER, model


def metered_model(model_id: str, weights: Path, adapters: Mapping[str, Path], **engine: Any) -> ModelConfig:
    """A tiny model on this CPU, with its adapters.

    Its context is as long as its weights allow: an answer that a test cuts off must not end before that.
    """
    named = {"lora": [{"name": name, "source": str(adapter)} for name, adapter in adapters.items()]} if adapters else {}
    kwargs = {"dtype": "float32", "max_num_seqs": 8, **EAGER, **engine}
    data = model(model_id, weights, engine={**named, "max_total_tokens": 2048, "engine_kwargs": kwargs})
    return with_host_memory(ModelConfig.model_validate(data), None, reserve=False)


def start_replica(
    config: ModelConfig, weights: Path, adapter: Path, records: Path, port: int, log: Path
) -> subprocess.Popen[bytes]:
    """The process of `metered.py`, in a session of its own; its model file is beside its log."""
    file = log.with_suffix(".json")
    file.write_text(config.model_dump_json())
    words = [sys.executable, "-m", "tests.serving.metered", *map(str, (file, weights, adapter, records, port))]
    with log.open("ab") as out:
        return subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True)


def runtime_of(folder: Path) -> Runtime:
    """A gateway at free ports, with its files in `folder`."""
    return Runtime(
        bind=f"127.0.0.1:{free_port()}", folder=f"{folder}/files", run_folder=f"{folder}/run",
        key_map=f"{folder}/run/keys.map", metrics_bind=f"127.0.0.1:{free_port()}", threads=1, bodies_memory_mib=256,
    )  # fmt: skip
