"""What vLLM reserves on a GPU for LoRA adapters, whichever come."""

from __future__ import annotations

from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.infra.planning.memory.parts import HALF
from modelfleet.infra.planning.memory.weights import parts_of


def slots_bytes(checkpoint: Checkpoint, engine: EngineArguments, slots: int, rank: int) -> float:
    """Bytes of all slots on one GPU: two matrices beside each linear module, embedding and head.

    vLLM 0.32 `vllm/lora/layers`: `lora_a_stacked` of rank x inputs for each of the merged matrices, `lora_b_stacked` of
    outputs x rank, whatever modules an adapter changes.
    """
    rows = 0
    for part in parts_of(checkpoint, engine):
        if part.linear:
            # The part of the queries has keys and values too, without a count of its own.
            merged = max(part.pieces, 3 if part.name.endswith("q_proj") else 1)
            rows += part.copies * (merged * part.inputs + part.outputs)
        elif part.name in ("embed_tokens", "lm_head"):
            rows += part.elements // checkpoint.hidden + checkpoint.hidden
    return float(slots * rank * HALF * rows)
