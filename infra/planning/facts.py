"""What is known about a model: its `config.json`, and the bytes of its checkpoint where its headers were read.

Parameters and caches follow from the config (`planning/memory`). Headers correct what a config does not say: a tower
for images, or a quantization that stands in another file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from modelfleet.infra.catalog import Catalog, Measured
from modelfleet.infra.planning.drafting import draft_source
from modelfleet.infra.planning.memory.checkpoint import Checkpoint, UnknownShapeError
from modelfleet.infra.planning.memory.drafts import as_vllm_reads, stored_heads
from modelfleet.infra.planning.memory.encoders import encoder_elements
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.infra.planning.memory.layers import layout_of
from modelfleet.infra.planning.memory.parts import HALF
from modelfleet.infra.planning.memory.weights import weights_of
from modelfleet.serving.config.schema import ModelConfig

#: Bytes per value of each dtype as checkpoints and safetensors headers spell them.
DTYPE_BYTES = {
    "float32": 4.0, "float": 4.0, "float16": 2.0, "half": 2.0, "bfloat16": 2.0, "float8_e4m3fn": 1.0,
    "F64": 8.0, "F32": 4.0, "F16": 2.0, "BF16": 2.0, "F8_E4M3": 1.0, "F8_E5M2": 1.0, "F8_E8M0": 1.0, "F4": 0.5,
    "I64": 8.0, "I32": 4.0, "I16": 2.0, "I8": 1.0, "U8": 1.0, "BOOL": 1.0,
}  # fmt: skip
#: A checkpoint whose headers hold less than this share of what its config says is quantized by another file.
LIGHTER = 0.9


@dataclass(frozen=True)
class ModelFacts:
    """A checkpoint and where it was read. `header_bytes` and `header_elements` come from safetensors headers.

    `draft` is the config of the checkpoint that drafts for it, where a model file names one and it is known.
    """

    checkpoint: Checkpoint
    source: str
    header_bytes: int | None = None
    header_elements: int | None = None
    draft: Checkpoint | None = None
    #: Ranks of the adapters that a model file names, by their sources, where they are known.
    adapter_ranks: tuple[tuple[str, int], ...] = ()
    #: What vLLM really took of this model, on any card.
    measured: tuple[Measured, ...] = ()

    @property
    def architecture(self) -> str:
        """The decoder's `model_type`."""
        return self.checkpoint.model_type

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.checkpoint.heads

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.checkpoint.hidden

    @property
    def intermediate_size(self) -> int:
        """The widest dense activation."""
        found = self.checkpoint.get("intermediate_size", "ffn_hidden_size", "n_inner", "moe_intermediate_size")
        return int(found[0] if isinstance(found, list) else found or 4 * self.checkpoint.hidden)

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return self.checkpoint.count("vocab_size")

    @property
    def max_positions(self) -> int | None:
        """The longest sequence; None where the file does not say."""
        return self.checkpoint.longest

    @property
    def dtype(self) -> str:
        """The checkpoint's dtype, as its file says."""
        name = self.checkpoint.get("dtype", "torch_dtype")
        return str(name).removeprefix("torch.") if name else "bfloat16"

    @property
    def quantization(self) -> str | None:
        """The checkpoint's quantization method."""
        method = self.checkpoint.quantization.get("quant_method")
        return str(method).lower() if method else None

    @cached_property
    def counted_bytes(self) -> float:
        """Bytes of the decoder's weights as its config describes them."""
        return weights_of(self.checkpoint, EngineArguments(1)).bytes

    @cached_property
    def parameters(self) -> int:
        """Elements as stored: of the headers, else counted."""
        return self.header_elements or weights_of(self.checkpoint, EngineArguments(1)).elements

    @cached_property
    def encoder_bytes(self) -> float:
        """Bytes of towers for images and sound: what the headers hold beside the decoder, else counted."""
        counted = encoder_elements(self.checkpoint) * HALF
        if not counted or self.header_bytes is None:
            return counted
        return max(0.0, self.header_bytes - self.counted_bytes - stored_heads(self.checkpoint))

    @property
    def header_ratio(self) -> float:
        """What the headers say beside the config, where they say less: the quantization stands in another file."""
        if self.header_bytes is None or self.header_bytes >= LIGHTER * self.counted_bytes:
            return 1.0
        return self.header_bytes / self.counted_bytes


def facts_from_config(
    config: Mapping[str, Any],
    source: str,
    catalog: Catalog,
    headers: Sequence[Mapping[str, Any]] = (),
    *,
    name: str = "",
) -> ModelFacts:
    """Facts from a parsed `config.json` and the JSON headers of its safetensors files.

    `name` is the model's Hub id, by which it is known what was measured of it.

    Raises `UnknownShapeError` when the file does not say what a plan needs.
    """
    checkpoint = Checkpoint(config, catalog.architecture_defaults)
    tensors = [t for header in headers for name, t in header.items() if name != "__metadata__"]
    facts = ModelFacts(
        checkpoint=checkpoint,
        source=source,
        header_bytes=round(sum(_bytes(tensor) for tensor in tensors)) if tensors else None,
        header_elements=sum(_elements(tensor) for tensor in tensors) if tensors else None,
        measured=catalog.measured_of(name),
    )
    layout_of(checkpoint, EngineArguments(16))
    if not facts.counted_bytes:
        raise UnknownShapeError("config.json describes no weights")
    return facts


def catalog_facts(models: Iterable[ModelConfig], catalog: Catalog) -> dict[str, ModelFacts | None]:
    """What the catalog knows about each model, by `model_id`; None where it knows nothing."""
    found: dict[str, ModelFacts | None] = {}
    for model in models:
        row = catalog.model(model.engine_config.weights_id)
        known = row is not None and row.config is not None
        facts = (
            facts_from_config(row.config, f"catalog: {row.shape_source}", catalog, name=row.hf_id)
            if known and row and row.config
            else None
        )
        source = draft_source(model)
        draft = catalog.model(source[0]) if source else None
        found[model.model_id] = with_draft(facts, draft.config if draft else None, catalog)
    return found


def with_draft(facts: ModelFacts | None, config: Mapping[str, Any] | None, catalog: Catalog) -> ModelFacts | None:
    """The facts with the config.json of what drafts for the model."""
    if facts is None or config is None:
        return facts
    return dataclasses.replace(facts, draft=Checkpoint(as_vllm_reads(config), catalog.architecture_defaults))


def _elements(tensor: Mapping[str, Any]) -> int:
    count = 1
    for size in tensor["shape"]:
        count *= int(size)
    return count


def _bytes(tensor: Mapping[str, Any]) -> float:
    return _elements(tensor) * DTYPE_BYTES.get(tensor["dtype"], 1.0)
