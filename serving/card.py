"""Which card a replica got: where a pool falls back on another accelerator, its engine arguments depend on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.errors import EngineError


class Card(BaseModel):
    """A card that the pool's nodes may have, from the plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accelerator: str = Field(description="Its name in model and stack files.")
    nvml: list[str] = Field(min_length=1, description="Words of NVML's name of it, parted at spaces and `-`.")
    engine_kwargs: dict[str, Any] = Field(description="All of the model's engine arguments on it.")


def on_this_card(
    model: ModelConfig, cards: Sequence[Card], report: Callable[[str], None], ask: Callable[[], str] | None = None
) -> ModelConfig:
    """The model with the engine arguments of this node's card; as it is, and nobody is asked, where it has no `cards`.

    `ask` returns NVML's name of the card. Memory and batch are counted for each of `cards`, so any other is refused.
    """
    if not cards:
        return model
    name = (ask or nvml_name)()
    words = set(re.split(r"[\s-]+", name))
    card = next((one for one in cards if words.issuperset(one.nvml)), None)
    if card is None:
        raise EngineError(
            f"this node's card is {name!r}, but {model.model_id} has engine arguments for "
            f"{', '.join(one.accelerator for one in cards)}; give the pool nodes with one of them, or name this card "
            "in a `fallback` of the pool"
        )
    report(f"{model.model_id} has the engine arguments for {card.accelerator}: the node's card is {name}")
    engine = model.engine_config.model_copy(update={"engine_kwargs": card.engine_kwargs})
    return model.model_copy(update={"engine_config": engine})


def nvml_name() -> str:
    """NVML's name of the node's first card: a node has cards of one kind."""
    import ray._private.thirdparty.pynvml as nvml  # Ray's copy, with which Ray itself counts the node's cards

    try:
        nvml.nvmlInit()
        name = nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(0))
        nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise EngineError(f"NVML does not say which card this node has: {error}; look at the node's driver") from None
    return str(name.decode() if isinstance(name, bytes) else name)
