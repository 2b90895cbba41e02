"""What a speed is computed from: a model, the GPUs that serve it, and the load. Plain numbers over all GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from modelfleet.infra.catalog.speed import Factors, SpeedCard

#: How weights are stored. `packed` are integers with 16-bit activations (AWQ, GPTQ); they, and what a card cannot
#: compute with, are unpacked to 16 bit.
WeightFormat = Literal["16bit", "fp8", "int8", "packed", "mxfp4", "nvfp4"]

#: Mean tokens of a prompt and an answer where nobody says: a chat with a short history.
ASSUMED_INPUT: Final = 512
ASSUMED_OUTPUT: Final = 256
#: The format of each precision that measurements.csv names.
PRECISION_FORMATS: Final[Mapping[str, WeightFormat]] = {
    "bf16": "16bit", "fp16": "16bit", "fp8": "fp8", "int8-w8a8": "int8", "gptq-int8": "packed", "awq": "packed",
    "gptq-w4a16": "packed", "int4-w4a16": "packed", "mxfp4": "mxfp4", "nvfp4": "nvfp4",
}  # fmt: skip

#: vLLM 0.32's engine, in the names of measurements.csv.
VLLM: Final = "vllm"


@dataclass(frozen=True)
class SpeedShape:
    """A model as its decode steps and prefills see it, over all GPUs of a replica.

    `dense_bytes` and `expert_bytes` are weights in memory without an embedding table that is only looked up;
    `expert_bytes` are the routed experts. `active_parameters` multiply each token. `attention_width` is heads × head
    size, summed over the layers that attend to the whole context. `kv_bytes_per_token` grows with the context,
    `kv_bytes_per_sequence` does not (windows, recurrent states); both count replicated parts on every GPU.
    """

    layers: int
    hidden_size: int
    active_parameters: float
    dense_bytes: float
    attention_width: float
    kv_bytes_per_token: float
    weight_format: WeightFormat = "16bit"
    kv_bytes_per_sequence: float = 0.0
    expert_bytes: float = 0.0
    experts: int = 0
    experts_per_token: int = 0


@dataclass(frozen=True)
class Server:
    """One replica: its GPUs, vLLM's limits, and the tokens that its KV cache holds (infinite: not known)."""

    card: SpeedCard
    factors: Factors
    gpus: int = 1
    kv_tokens: float = float("inf")
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    measured_card: bool = True
    """False: nobody measured this card, its factors are those of all cards, and ranges are wider."""


@dataclass(frozen=True)
class Load:
    """`concurrency` clients that each send the next request when the last is answered; mean lengths in tokens."""

    input_tokens: float
    output_tokens: float
    concurrency: float = 1.0
