"""Adapters of a running engine, with vLLM's own list of them and no engine behind it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from modelfleet.serving.engine import Adapters


def test_a_changed_adapter_is_loaded_once_and_not_at_every_step() -> None:
    """vLLM reads an adapter from the disk at each step of a request with `load_inplace`."""
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

    loads: list[tuple[str, bool]] = []

    async def add_lora(request: Any) -> None:
        loads.append((request.lora_path, request.load_inplace))

    client: Any = SimpleNamespace(model_config=None, renderer=None, input_processor=None, add_lora=add_lora)
    models = OpenAIServingModels(client, [BaseModelPath(name="org/base", model_path="/base")])
    adapters = Adapters(models)
    for folder in ("/one", "/two"):
        assert asyncio.run(adapters.become({"org/adapter": Path(folder)})) == {}
    assert loads == [("/one", False), ("/two", True)], "the second takes the first one's place"
    kept = models.lora_requests["org/adapter"]
    assert (kept.lora_path, kept.lora_int_id, kept.load_inplace) == ("/two", 1, False), "what each request is given"
