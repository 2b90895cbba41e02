"""LoRA adapters: how many a replica has room for at once, of which rank, and what that takes of a GPU. Pure.

A replica reserves its slots when it starts. The adapters themselves come and go while it runs: they are the
application's `user_config`, which Serve hands to running replicas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.engine_args import LORA_RANKS

#: Adapters in one batch (`max_loras`). vLLM swaps in others from the node's disk. Few steps, so that one adapter more
#: or less seldom changes what the engine reserves, which takes a restart.
SLOTS = (4, 8)
#: The rank that is reserved where an adapter's own is not known: few published ones have more.
ASSUMED_RANK = 64


def with_adapters(model: ModelConfig, facts: ModelFacts | None) -> ModelConfig:
    """The model with the slots for its adapters among the engine's arguments; as it is without any."""
    engine = model.engine_config
    kwargs = engine.engine_kwargs
    if not engine.lora and kwargs.get("enable_lora") is not True:
        return model
    slots = next((most for most in SLOTS if len(engine.lora) <= most), SLOTS[-1])
    chosen = {"enable_lora": True, "max_loras": slots, "max_lora_rank": _rank(model, facts)}
    given = {name: value for name, value in kwargs.items() if value is not None}
    return model.model_copy(
        update={"engine_config": engine.model_copy(update={"engine_kwargs": {**kwargs, **chosen, **given}})}
    )


def _rank(model: ModelConfig, facts: ModelFacts | None) -> int:
    """The smallest rank that vLLM knows and every adapter fits into."""
    known = dict(facts.adapter_ranks) if facts is not None else {}
    most = max((known.get(one.source, ASSUMED_RANK) for one in model.engine_config.lora), default=ASSUMED_RANK)
    return next((rank for rank in LORA_RANKS if rank >= most), most)


def adapter_findings(models: Sequence[LoadedModel], facts: Mapping[str, ModelFacts | None]) -> list[Finding]:
    """Notices of adapters whose rank is not known."""
    found = []
    for model in models:
        engine, own = model.config.engine_config, facts.get(model.config.model_id)
        known = dict(own.adapter_ranks) if own is not None else {}
        if "max_lora_rank" in engine.engine_kwargs:
            continue
        for index, adapter in enumerate(engine.lora):
            if adapter.source not in known:
                message = (
                    f"the rank of {adapter.source} is not known here, so {ASSUMED_RANK} is reserved; "
                    "write engine_kwargs.max_lora_rank if it is another"
                )
                path = ("engine_config", "lora", index, "source")
                found.append(model.document.finding(path, message, Severity.NOTICE))
    return found
