"""Writes infra/catalog/architecture-defaults.json: what transformers' config classes put where a config.json is silent.

    python -m tools.probe.defaults

Width and depth are left out on purpose: a file without them describes no release (`planning/memory/checkpoint.py`).
"""

from __future__ import annotations

import json
import logging
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from modelfleet.infra.catalog.catalog import FOLDER

TARGET: Path = FOLDER / "architecture-defaults.json"
#: Keys that the arithmetic reads and that files leave out because the class has them.
KEYS = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size", "tie_word_embeddings",
    "attention_bias", "mlp_bias", "sliding_window", "use_sliding_window", "max_position_embeddings", "num_experts",
    "num_local_experts", "n_routed_experts", "n_shared_experts", "moe_intermediate_size", "num_experts_per_tok",
    "shared_expert_intermediate_size", "first_k_dense_replace", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "v_head_dim", "attention_chunk_size", "interleave_moe_layer_step", "intermediate_size_mlp",
    "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim",
    "linear_conv_kernel_dim", "conv_L_cache", "mamba_d_state", "mamba_d_conv", "mamba_expand", "mamba_n_heads",
    "mamba_d_head", "mamba_n_groups", "global_head_dim", "num_global_key_value_heads", "num_kv_shared_layers",
    "hidden_size_per_layer_input", "vocab_size_per_layer_input", "no_rope_layer_interval", "decoder_sparse_step",
    "use_qk_norm", "qk_norm", "moe_layer_start_index", "moe_layer_interval", "moe_num_experts", "index_topk",
    "index_head_dim", "index_n_heads", "multi_query", "new_decoder_architecture", "encoder_layers", "d_model",
)  # fmt: skip


def defaults() -> dict[str, dict[str, Any]]:
    """By `model_type`: the class's values of `KEYS` that are numbers or switches."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found: dict[str, dict[str, Any]] = {}
    for kind in CONFIG_MAPPING:
        try:
            whole = CONFIG_MAPPING[kind]()
            text = whole.get_text_config()
            text.allow_global_per_layer_attribute_access = True
        except Exception as problem:  # noqa: BLE001  classes that need arguments or other packages have no defaults
            logging.getLogger(__name__).debug("%s: %s", kind, problem)
            continue
        values = _values(text)
        if values.get("num_attention_heads"):
            found[kind] = {key: value for key, value in values.items() if key not in _derived(text, values)}
    return found


def _values(config: Any) -> dict[str, Any]:
    config.allow_global_per_layer_attribute_access = True
    return {key: value for key in KEYS if isinstance(value := getattr(config, key, None), int | float)}


def _derived(text: Any, values: dict[str, Any]) -> set[str]:
    """Keys whose value the class computes from width and heads: they are no defaults."""
    heads, width = values["num_attention_heads"], getattr(text, "hidden_size", None) or 0
    try:
        other = _values(type(text)(num_attention_heads=3 * heads, hidden_size=6 * width))
    except Exception:  # noqa: BLE001  a class that refuses these numbers: nothing that could be computed is kept
        return {"head_dim", "num_key_value_heads"}
    return {key for key in values if key != "num_attention_heads" and other.get(key) != values[key]}


def main() -> None:
    """Writes the file."""
    warnings.filterwarnings("ignore")
    rows = sorted(defaults().items())
    lines = ",\n".join(f"  {json.dumps(kind)}: {json.dumps(values)}" for kind, values in rows)
    source = f"transformers {metadata.version('transformers')}, python -m tools.probe.defaults"
    TARGET.write_text(f'{{"source": {json.dumps(source)},\n "defaults": {{\n{lines}\n}}}}\n', encoding="utf-8")
    print(f"{TARGET}: {len(rows)} classes")


if __name__ == "__main__":
    main()
