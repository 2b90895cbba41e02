"""What must be known about a model to say whether it fits: parameters, layers, heads, dtype. Nothing is guessed.

`facts_from_config` reads a Hugging Face `config.json`, which does not contain the number of parameters. That comes from
the headers of the checkpoint's safetensors files, or from the catalog; a model without either is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelfleet.infra.catalog import Catalog
from modelfleet.infra.planning.architectures import Shape, shape_of
from modelfleet.serving.config.schema import ModelConfig

#: Bytes per value of each dtype as checkpoints and safetensors headers spell them.
DTYPE_BYTES = {
    "float32": 4.0, "float": 4.0, "float16": 2.0, "half": 2.0, "bfloat16": 2.0, "float8_e4m3fn": 1.0,
    "F64": 8.0, "F32": 4.0, "F16": 2.0, "BF16": 2.0, "F8_E4M3": 1.0, "F8_E5M2": 1.0, "I64": 8.0, "I32": 4.0,
    "I16": 2.0, "I8": 1.0, "U8": 1.0, "BOOL": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class KvLayers:
    """Layers with the same KV cache: heads, sizes of key and value per head, window in tokens (None: all tokens).

    `shared` means one latent vector that every tensor-parallel worker keeps whole (multi-head latent attention).
    """

    count: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    shared: bool = False

    def bytes_per_token(self, workers: int, value_bytes: float) -> float:
        """Bytes of one token's keys and values in all these layers, on one of `workers` GPUs."""
        heads = self.kv_heads if self.shared else max(1, self.kv_heads // workers)
        return self.count * heads * (self.key_dim + self.value_dim) * value_bytes


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that decide its memory.

    For a quantized checkpoint with headers, `parameters` counts stored values, each of which holds several weights.
    `linear_parameters` are those that quantization compresses: all except embeddings and head. They include norms and
    biases, which are under 0.1 % in all but the smallest models. `weight_bytes` is exact, from the
    checkpoint's headers, or None without them. `source` says where the facts were read.
    """

    architecture: str
    parameters: int
    linear_parameters: int
    dtype: str
    quantization: str | None
    quantization_bits: float | None
    weight_bytes: int | None
    heads: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int | None
    kv: tuple[KvLayers, ...]
    source: str


def facts_from_config(
    config: Mapping[str, Any],
    source: str,
    headers: Sequence[Mapping[str, Any]] = (),
    *,
    parameters: int | None = None,
) -> ModelFacts | None:
    """Facts from a parsed `config.json` with the JSON headers of its safetensors files, or a known parameter count.

    None when the file does not describe a decoder, or when its number of parameters is unknown.
    """
    shape = shape_of(config)
    tensors = [t for header in headers for name, t in header.items() if name != "__metadata__"]
    if tensors:
        parameters = sum(_elements(tensor) for tensor in tensors)
    if shape is None or parameters is None:
        return None
    method, bits = quantization_of(config)
    return ModelFacts(
        architecture=shape.architecture,
        parameters=parameters,
        linear_parameters=max(0, parameters - shape.embeddings),
        dtype=_dtype(config),
        quantization=method,
        quantization_bits=bits,
        weight_bytes=round(sum(_bytes(tensor) for tensor in tensors)) if tensors else None,
        heads=shape.heads,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        max_positions=shape.max_positions,
        kv=kv_layers(shape),
        source=source,
    )


def catalog_facts(models: Iterable[ModelConfig], catalog: Catalog) -> dict[str, ModelFacts | None]:
    """What the catalog knows about each model, by `model_id`; None where it knows nothing."""
    found: dict[str, ModelFacts | None] = {}
    for model in models:
        row = catalog.model(model.engine_config.weights_id)
        if row is not None:
            source = f"catalog: {row.source}"
            found[model.model_id] = facts_from_config(row.config, source, parameters=row.parameters)
        else:
            found[model.model_id] = None
    return found


def kv_layers(shape: Shape) -> tuple[KvLayers, ...]:
    """Layers grouped by their window."""
    windows = [shape.window if sliding else None for sliding in shape.sliding]
    if shape.latent_dim:
        return (KvLayers(shape.layers, 1, shape.latent_dim, 0, None, shared=True),)
    return tuple(
        KvLayers(windows.count(window), shape.kv_heads, shape.head_dim, shape.head_dim, window)
        for window in dict.fromkeys(windows)
    )


def quantization_of(config: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Method and bits per weight of a quantized checkpoint."""
    found = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(found, Mapping):
        return None, None
    method = str(found.get("quant_method", "")).lower() or None
    bits = found.get("bits") or found.get("w_bit")
    if bits is None and method == "compressed-tensors":
        groups = found.get("config_groups") or {}
        bits = next((g["weights"]["num_bits"] for g in groups.values() if g.get("weights")), None)
    return method, float(bits) if bits else {"fp8": 8.0, "fbgemm_fp8": 8.0, "mxfp4": 4.25}.get(method or "")


def _dtype(config: Mapping[str, Any]) -> str:
    nested = config.get("text_config")
    inner = nested if isinstance(nested, Mapping) else {}
    name = config.get("dtype") or config.get("torch_dtype") or inner.get("dtype") or inner.get("torch_dtype")
    return str(name).removeprefix("torch.") if name else "float32"


def _elements(tensor: Mapping[str, Any]) -> int:
    count = 1
    for size in tensor["shape"]:
        count *= int(size)
    return count


def _bytes(tensor: Mapping[str, Any]) -> float:
    return _elements(tensor) * DTYPE_BYTES[tensor["dtype"]]
