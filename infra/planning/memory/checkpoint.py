"""A checkpoint's `config.json` under one set of questions: where its decoder stands, and what a missing key means.

vLLM reads a config through transformers' config classes, which fill what a file leaves out. The values of those classes
are data (`infra/catalog/architecture-defaults.json`). A file without width or depth describes no release, only the
defaults of a class, so it is refused: for sixteen families those defaults are another model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

#: Keys under which a multimodal config keeps its decoder (transformers' `get_text_config`, vLLM's `hf_text_config`).
TEXT_KEYS = ("text_config", "llm_config", "language_config", "text_model_config", "thinker_config")
#: Keys that hold the number of layers.
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
#: Keys that hold the width.
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "dim", "hidden_dim")
#: Keys of the longest sequence, in vLLM's order (`derive_max_model_len_and_key`).
LENGTH_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
#: Rope types whose `max_position_embeddings` is scaled already (`_get_and_verify_max_len`).
SCALED_ROPES = {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
#: vLLM's length for a config without any (`_get_and_verify_max_len`).
DEFAULT_LENGTH = 2048


class UnknownShapeError(ValueError):
    """A config.json does not say what a plan needs; the message says what to give instead."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A parsed `config.json`; `class_defaults` are transformers' by `model_type`."""

    raw: Mapping[str, Any]
    class_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checkpoint) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash((self.architecture, self.model_type, len(self.raw)))

    @cached_property
    def text(self) -> Mapping[str, Any]:
        """The decoder's own section, or the whole file."""
        found = self.raw
        for _ in range(2):  # Qwen-Omni nests twice: thinker_config, text_config
            inner = next((found[key] for key in TEXT_KEYS if isinstance(found.get(key), Mapping)), None)
            if inner is None:
                break
            found = inner
        return found

    @cached_property
    def architecture(self) -> str:
        """The first of `architectures`, which chooses vLLM's model class."""
        names = self.raw.get("architectures") or self.text.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""

    @property
    def model_type(self) -> str:
        """The decoder's type; the whole file's where the section has none."""
        return str(self.text.get("model_type") or self.raw.get("model_type") or "")

    @cached_property
    def _defaults(self) -> Mapping[str, Any]:
        whole = str(self.raw.get("model_type") or "")
        return self.class_defaults.get(self.model_type) or self.class_defaults.get(f"{whole}_text") or {}

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of these keys that has a value, in the decoder's section, the file, then the class's defaults.

        A key that the file sets to null has no value, whatever the class has.
        """
        for source in (self.text, self.raw):
            for name in names:
                if source.get(name) is not None:
                    return source[name]
        for name in names:
            if name in self._defaults and name not in self.text and name not in self.raw:
                return self._defaults[name]
        return default

    def need(self, *names: str) -> Any:
        """As `get`. Raises `UnknownShapeError` when no key has a value."""
        found = self.get(*names)
        if found is None:
            raise UnknownShapeError(f"config.json has no {names[0]}, without which nothing can be planned")
        return found

    def count(self, *names: str, default: int | None = None) -> int:
        """As `need`, a whole number; `default` where no key has a value."""
        return int(self.need(*names) if default is None else self.get(*names, default=default))

    def given(self, *names: str) -> bool:
        """Whether the file itself has one of these keys."""
        return any(source.get(name) is not None for source in (self.text, self.raw) for name in names)

    @cached_property
    def layers(self) -> int:
        """Decoder layers."""
        if not self.given(*DEPTH_KEYS, "layers_block_type", "layer_types", "hybrid_override_pattern"):
            raise UnknownShapeError(
                "config.json has no num_hidden_layers: the rest would be the defaults of transformers' config class, "
                "which are another model's; give the release's own config.json"
            )
        pattern = self.get("layers_block_type", "hybrid_override_pattern")
        depth = self.get(*DEPTH_KEYS)
        return int(depth) if depth is not None else len(pattern if pattern is not None else self.need("layer_types"))

    @cached_property
    def hidden(self) -> int:
        """Width of the residual stream."""
        if not self.given(*WIDTH_KEYS):
            raise UnknownShapeError(
                "config.json has no hidden_size: the rest would be the defaults of transformers' config class, which "
                "are another model's; give the release's own config.json"
            )
        return int(self.need(*WIDTH_KEYS))

    @cached_property
    def heads(self) -> int:
        """Query heads; 0 for a model without attention."""
        return self.count("num_attention_heads", "n_head", "n_heads", "num_heads", default=0)

    @cached_property
    def kv_heads(self) -> int:
        """Key and value heads."""
        if self.get("multi_query") and not self.get("new_decoder_architecture"):
            return 1  # Falcon
        named = self.get("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num")
        named = self.get("num_attention_groups") if named is None else named
        return int(named) if named is not None else self.heads

    @cached_property
    def head_dim(self) -> int:
        """Size of a head."""
        named = self.get("head_dim", "hidden_size_per_head", "kv_channels", "attention_head_dim")
        if named:
            return int(named)
        return self.hidden // self.heads if self.heads else 0

    @cached_property
    def longest(self) -> int:
        """The longest sequence that the model takes, as vLLM derives it."""
        named = [int(found) for key in LENGTH_KEYS if (found := self.get(key)) is not None]
        longest = self.get("model_max_length") or min(named, default=DEFAULT_LENGTH)
        if "gemma3" in str(self.raw.get("model_type")):
            return int(longest)
        factor = 1.0
        for rope in self._ropes():
            if rope.get("rope_type", rope.get("type", "default")) not in SCALED_ROPES:
                factor = rope.get("factor") or factor
        return int(longest * factor)

    @cached_property
    def default_length(self) -> int:
        """The length that vLLM takes where none is asked for: with LongRoPE the one before its scaling."""
        if any(rope.get("rope_type", rope.get("type")) == "longrope" for rope in self._ropes()):
            return int(self.get("original_max_position_embeddings") or self.longest)
        return self.longest

    def _ropes(self) -> Iterator[Mapping[str, Any]]:
        for key in ("rope_parameters", "rope_scaling"):
            found = self.text.get(key)
            if not isinstance(found, Mapping):
                continue
            nested = [one for one in found.values() if isinstance(one, Mapping)]
            yield from nested or [found]

    @cached_property
    def tied(self) -> bool:
        """Whether embedding and head are one matrix. The file's top level counts first, as for vLLM's wrappers."""
        for source in (self.raw, self.text, self._defaults):
            if source.get("tie_word_embeddings") is not None:
                return bool(source["tie_word_embeddings"])
        return False

    def per_layer(self, layer: int, name: str, default: Any) -> Any:
        """A value that a layer may have of its own: transformers' `per_layer_config`, keyed by the layer's number."""
        table = self.get("per_layer_config")
        if isinstance(table, Mapping):
            for key, values in table.items():
                if str(key).isdigit() and int(key) == layer and values.get(name) is not None:
                    return values[name]
        return default

    @cached_property
    def quantization(self) -> Mapping[str, Any]:
        """The quantization section; empty without one, or with one whose `quant_method` vLLM cannot read."""
        for source in (self.raw, self.text):
            for key in ("quantization_config", "compression_config"):
                found = source.get(key)
                if isinstance(found, Mapping) and (found.get("quant_method") or found.get("quant_type")):
                    return found
        return {}
