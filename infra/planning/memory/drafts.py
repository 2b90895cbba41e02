"""What drafts for a model (`speculative_config`): the weights and caches that it adds on one GPU.

Source: vllm/config/speculative.py, vllm/v1/spec_decode/llm_base_proposer.py and the draft classes in
vllm/model_executor/models of vLLM 0.32.0. A head reads the target's embedding, and an EAGLE or multi-token head its
output matrix too (`_maybe_share_embeddings`, `_maybe_share_lm_head`); a draft model shares nothing. All are divided
over the target's GPUs, and their caches lie in the target's pool, with its block size and its dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modelfleet.infra.planning.memory import mixers
from modelfleet.infra.planning.memory.caches import Cache, Kind
from modelfleet.infra.planning.memory.checkpoint import Checkpoint, UnknownShapeError
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.infra.planning.memory.feedforward import dense, feed_forward
from modelfleet.infra.planning.memory.layers import Reading, caches_of, latent_caches, plain_caches
from modelfleet.infra.planning.memory.parts import Part, Size, format_of, plain
from modelfleet.infra.planning.memory.traits import traits_of
from modelfleet.infra.planning.memory.weights import VOCAB_PADDING, parts_of

MTP, EAGLE, EAGLE3, MEDUSA, MODEL = "mtp", "eagle", "eagle3", "medusa", "draft_model"
#: Methods that draft from the text alone (`SpeculativeMethod`).
WITHOUT_WEIGHTS = ("ngram", "[ngram]", "ngram_gpu", "suffix")
#: What a draft's name says about its method, in vLLM's order (`SpeculativeConfig.__post_init__`).
NAMED_METHODS = (("eagle-", EAGLE), ("eagle3", EAGLE3), ("dflash", "dflash"), ("dspark", "dspark"))
#: Keys with the number of multi-token layers (`hf_config_override`).
MTP_LAYERS = ("mtp_num_hidden_layers", "num_nextn_predict_layers")
#: Classes of registry.py that were read, by what `EAGLEConfig` makes of their names: llama_eagle.py, llama_eagle3.py,
#: qwen3_eagle3.py, deepseek_eagle3.py.
KNOWN_HEADS = {
    EAGLE: {"LlamaForCausalLM", "EagleLlamaForCausalLM"},
    EAGLE3: {"Qwen3ForCausalLM", "Eagle3Qwen3ForCausalLM", "PeagleQwen3ForCausalLM", "DeepseekV2ForCausalLM",
             "DeepseekV3ForCausalLM", "Eagle3DeepseekV2ForCausalLM", "Eagle3DeepseekV3ForCausalLM",
             "LlamaForCausalLM", "LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "Eagle3MiniMaxM2ForCausalLM",
             "Eagle3Qwen2_5vlForCausalLM", "Eagle3Qwen3vlForCausalLM", "PEagleDraftModel", "PeagleLlamaForCausalLM"},
}  # fmt: skip
#: Hidden states of the target that an EAGLE3 head reads, where its config names none (llama_eagle3.py).
AUX_STATES = 3
#: Projections that read the embedding beside the states in a first EAGLE3 layer.
WIDENED = ("q_proj", "q_a_proj", "kv_a_proj_with_mqa")
#: Bytes of an entry of the table from the draft's vocabulary to the target's: int64.
TOKEN_ID_BYTES = 8


@dataclass(frozen=True)
class Predictor:
    """How a family's multi-token layer begins and ends: norms of its width, and the projection of 2 widths to 1."""

    norms: int = 3
    divided: bool = False
    """Over the GPUs, and quantized with the rest; else whole and plain (`nn.Linear`)."""
    sparse: bool = True
    """With experts where the family has them."""


#: `model_type` of the families whose multi-token class was read: the names are those of the target.
PREDICTORS = {
    **dict.fromkeys(("deepseek_v3", "deepseek_v32", "glm_moe_dsa", "kimi_k2", "glm4_moe", "glm4_moe_lite", "hy_v3"),
                    Predictor()),  # deepseek_mtp.py, glm4_moe_mtp.py, glm4_moe_lite_mtp.py, hy_v3_mtp.py
    "mimo": Predictor(),  # mimo_mtp.py
    "ernie4_5_moe": Predictor(norms=2, sparse=False),  # ernie_mtp.py: a Llama layer
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_moe", "nemotron_h"), Predictor(divided=True)),
}  # fmt: skip


@dataclass(frozen=True)
class Draft:
    """A method of vLLM and the draft's own config; None for multi-token layers, which the target's checkpoint holds."""

    method: str
    checkpoint: Checkpoint | None = None


def method_of(section: Mapping[str, Any], draft: Checkpoint | None = None) -> str:
    """The method that vLLM chooses for a `speculative_config`."""
    named, model = str(section.get("method") or ""), str(section.get("model") or "")
    if named.endswith("_mtp"):
        return MTP
    if named and named != MODEL:
        return named
    if model in WITHOUT_WEIGHTS:
        return "ngram"
    found = next((method for word, method in NAMED_METHODS if word in model.lower()), None)
    if found is None and draft is not None and draft.model_type == MEDUSA:
        return MEDUSA
    return found or MODEL


def predicted_layers(target: Checkpoint) -> int:
    """Multi-token layers in a checkpoint; 0 without any."""
    return target.count(*MTP_LAYERS, default=0)


def as_vllm_reads(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A draft's config.json; that of the speculators library is unpacked (configs/speculators/base.py, algos.py)."""
    layer = config.get("transformer_layer_config")
    if not isinstance(layer, Mapping):
        return config
    kind = {"llama": "Eagle3LlamaForCausalLM"}.get(str(layer.get("model_type", "llama")), "Eagle3Qwen3ForCausalLM")
    carried = ("draft_vocab_size", "target_hidden_size", "norm_before_fc", "fc_norm",
               "eagle_aux_hidden_state_layer_ids")  # fmt: skip
    return {**layer, **{key: config[key] for key in carried if key in config}, "architectures": [kind]}


def draft_size(draft: Draft, target: Checkpoint, engine: EngineArguments) -> Size:
    """Elements and bytes of the draft's weights on one GPU, without what it shares. Raises `UnknownShapeError`."""
    total = Size(0, 0.0)
    form = format_of(target if draft.checkpoint is None else draft.checkpoint)
    for part in _parts(draft, target, engine):
        total += form.size(part)
    return total


def stored_heads(target: Checkpoint) -> float:
    """Bytes of the multi-token layers that a checkpoint holds: vLLM loads them only to draft with. 0 if not known."""
    kind = target.model_type.removesuffix("_text")
    if kind not in PREDICTORS or not predicted_layers(target):
        return 0.0
    return draft_size(Draft(MTP), target, EngineArguments(1)).bytes


def draft_caches(draft: Draft, reading: Reading) -> list[Cache]:
    """The caches that the draft adds; `reading` is the target's. Raises `UnknownShapeError`."""
    if draft.method == MEDUSA:
        return []
    if draft.method == MTP:
        return _predicted_caches(reading)
    own, _ = caches_of(dataclasses.replace(reading, checkpoint=_own(draft)))
    if any(cache.kind is Kind.STATE for cache in own):
        raise UnknownShapeError("a draft with recurrent states is not known here")
    return own


def _own(draft: Draft) -> Checkpoint:
    if draft.checkpoint is None:
        raise UnknownShapeError("the draft's config.json is not known; give a folder, or allow the Hub")
    return draft.checkpoint


def _parts(draft: Draft, target: Checkpoint, engine: EngineArguments) -> Iterator[Part]:
    if draft.method == MTP:
        return _predicted(target, engine)
    own = _own(draft)
    if draft.method == MODEL:
        return parts_of(own, engine)
    if draft.method == MEDUSA:
        return _medusa(own, target, engine.ranks)
    if own.architecture not in KNOWN_HEADS.get(draft.method, ()):
        raise UnknownShapeError(f"a {draft.method} head of class {own.architecture or 'unknown'} is not known here")
    return _eagle(draft.method, own, target, engine)


def _predicted(target: Checkpoint, engine: EngineArguments) -> Iterator[Part]:
    """Multi-token layers: norms, a projection, and a layer of the target's last kind."""
    predictor, traits = _predictor(target), traits_of(target)
    hidden, ranks = target.hidden, engine.ranks
    for number in range(predicted_layers(target)):
        layer, name = target.layers + number, f"mtp.layers.{number}"
        yield plain(f"{name}.norms", (predictor.norms + 2) * hidden)
        if predictor.divided:
            # Stored plain in NVIDIA's NVFP4 checkpoints, whatever their list of exceptions says (qwen3_5_mtp.py).
            left = str(target.quantization.get("quant_method")) in ("modelopt", "modelopt_fp4")
            yield Part("mtp.fc", hidden // ranks, 2 * hidden, linear=not (left and "qwen" in target.model_type))
        else:
            yield plain(f"{name}.eh_proj", 2 * hidden * hidden)
        if target.get("kv_lora_rank"):
            yield from mixers.latent(target, layer, ranks)
        else:
            yield from mixers.attention(target, traits, layer, "full", ranks, shares=False)
        if predictor.sparse:
            yield from feed_forward(target, traits, layer, engine)
        else:
            yield from dense(target, traits, f"{name}.mlp", target.count("intermediate_size"), ranks)


def _predictor(target: Checkpoint) -> Predictor:
    kind = target.model_type.removesuffix("_text")
    if not predicted_layers(target):
        raise UnknownShapeError("its config.json names no multi-token layers (num_nextn_predict_layers)")
    if kind not in PREDICTORS:
        raise UnknownShapeError(f"the multi-token layers of a {kind} are not known here")
    pattern = target.get("mtp_hybrid_override_pattern", "mtp_layers_block_type", default="*E")
    if [str(one)[:1] for one in pattern] not in (["*", "E"], ["a", "m"]):  # Nemotron-3: attention, then experts
        raise UnknownShapeError(f"multi-token layers of the pattern {pattern!r} are not known here")
    return PREDICTORS[kind]


def _predicted_caches(reading: Reading) -> list[Cache]:
    """One more layer's cache for each multi-token layer; a sparse one leads its own index (deepseek_v2.py)."""
    target = reading.checkpoint
    _predictor(target)
    found: list[Cache] = []
    for layer in range(target.layers, target.layers + predicted_layers(target)):
        latent = target.get("kv_lora_rank")
        found += latent_caches(reading, layer) if latent else plain_caches(reading, layer, "full")
    return found


def _medusa(draft: Checkpoint, target: Checkpoint, ranks: int) -> Iterator[Part]:
    """Blocks that are whole on each GPU, and an output matrix a head (medusa.py)."""
    heads, hidden = draft.count("num_heads", "medusa_num_heads"), draft.hidden
    blocks = heads * draft.count("num_hidden_layers", "medusa_num_layers", default=1)
    yield plain("blocks", blocks * hidden * (hidden + bool(draft.get("medusa_fc_bias"))))
    matrices = 1 if draft.get("original_lm_head") else heads
    vocab = draft.count("truncated_vocab_size", default=target.count("vocab_size"))
    yield plain("lm_heads", matrices * _rows(vocab, ranks) * hidden)


def _eagle(method: str, draft: Checkpoint, target: Checkpoint, engine: EngineArguments) -> Iterator[Part]:
    """Dense layers behind a projection that is whole on each GPU. EAGLE3 has a norm more a layer, EAGLE one less."""
    third, hidden, traits, ranks = method == EAGLE3, draft.hidden, traits_of(draft), engine.ranks
    width = draft.count("target_hidden_size", default=hidden)
    for layer in range(draft.layers):
        latent = draft.get("kv_lora_rank")
        mixer = (
            mixers.latent(draft, layer, ranks)
            if latent
            else mixers.attention(draft, traits, layer, "full", ranks, shares=False)
        )
        for part in mixer:
            wide = third and layer == 0 and part.name.endswith(WIDENED)
            yield dataclasses.replace(part, inputs=2 * part.inputs) if wide else part
        yield from dense(draft, traits, f"layers.{layer}.mlp", draft.count("intermediate_size"), ranks)
        yield plain(f"layers.{layer}.norms", hidden * (3 if third else 1 + (layer > 0)))
    if not third:
        yield Part("fc", hidden, 2 * hidden)
        return
    states = _aux_states(draft)
    yield Part("fc", hidden, states * width)
    yield plain("norm", hidden + states * width * (bool(draft.get("norm_before_fc")) + bool(draft.get("fc_norm"))))
    vocab = draft.count("draft_vocab_size", "vocab_size")
    yield plain("lm_head", _rows(vocab, engine.ranks) * hidden)
    if vocab != target.count("vocab_size"):
        yield plain("draft_id_to_target_id", vocab, TOKEN_ID_BYTES)
    if hidden != target.hidden:  # an embedding of another width cannot be shared
        yield plain("embed_tokens", _rows(draft.count("vocab_size"), engine.ranks) * hidden)


def _aux_states(draft: Checkpoint) -> int:
    section = draft.get("eagle_config", default={})
    layers = section.get("eagle_aux_hidden_state_layer_ids")
    return draft.count("num_aux_hidden_states", default=len(layers) if layers else AUX_STATES)


def _rows(vocab: int, ranks: int) -> int:
    return VOCAB_PADDING * -(-vocab // VOCAB_PADDING) // ranks
