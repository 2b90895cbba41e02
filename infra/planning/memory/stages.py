"""What of a model a stage of a pipeline has (`pipeline_parallel_size`): its layers, and what lies around them.

Source: vLLM 0.32.0, `vllm/distributed/utils.py` (`get_pp_indices`) and the model classes' `is_first_rank` and
`is_last_rank`: the first stage has the embedding, the last one norm and head, and the embedding again where it is tied.
"""

from __future__ import annotations

import re

from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.engine import EngineArguments

_LAYER = re.compile(r"layers\.(\d+)\.")
#: Tensors of the last stage alone.
_LAST = ("lm_head", "norm")


def layers_of(layers: int, stages: int) -> list[range]:
    """The layers of each stage. Those that do not divide go one by one to the stages before the last, backwards."""
    counts = [layers // stages] * stages
    for back in range(2, layers % stages + 2):
        counts[-back] += 1
    starts = [sum(counts[:stage]) for stage in range(stages)]
    return [range(start, start + count) for start, count in zip(starts, counts, strict=True)]


def stage_has(checkpoint: Checkpoint, engine: EngineArguments, name: str) -> bool:
    """Whether the engine's stage has the tensor; what is neither layer, embedding nor head counts in every one."""
    if engine.stages == 1:
        return True
    last = engine.stage == engine.stages - 1
    if found := _LAYER.match(name):
        return int(found[1]) in layers_of(checkpoint.layers, engine.stages)[engine.stage]
    if name == "embed_tokens":
        return engine.stage == 0 or (last and checkpoint.tied)
    return last or name not in _LAST
