"""Seconds of one engine step: decoding a batch, or prefilling prompts. Memory, compute, links and launches."""

from __future__ import annotations

from typing import Final

from modelfleet.infra.planning.speed.inputs import Server, SpeedShape

#: Memory and compute overlap in a layer, but not fully: a sum of cubes is 1.26 where both take equally long.
OVERLAP: Final = 3.0
#: Tensor parallelism adds up all GPUs' results after attention and after the MLP, in 16 bit.
ALL_REDUCES_PER_LAYER: Final = 2
ACTIVATION_BYTES: Final = 2


def decode_seconds(shape: SpeedShape, server: Server, sequences: float, context: float) -> float:
    """One decode step of `sequences` sequences with `context` tokens each, on average."""
    factors = server.factors
    read = weight_seconds(shape, server, sequences)
    compute = matmul_seconds(shape, server, sequences, factors.decode_flops)
    cache = sequences * (context * shape.kv_bytes_per_token + shape.kv_bytes_per_sequence)
    attention = cache / (memory_bytes_per_s(server) * factors.kv_bandwidth)
    launches = shape.layers * (factors.layer_us + (factors.expert_layer_us if shape.experts else 0.0))
    overhead = factors.step_ms * 1e-3 + (factors.sequence_us * sequences + launches) * 1e-6
    links = link_seconds(shape, server, sequences) + all_reduce_seconds(shape, server)
    return overlapped(read, compute) + attention + overhead + links


def prefill_seconds(shape: SpeedShape, server: Server, length: float, prompts: float = 1) -> float:
    """The prefill of `prompts` prompts of `length` tokens in one step. Short ones take what launching it takes."""
    factors, tokens = server.factors, prompts * length
    read = weight_seconds(shape, server, tokens)
    compute = matmul_seconds(shape, server, tokens, factors.prefill_flops)
    links = link_seconds(shape, server, tokens) + all_reduce_seconds(shape, server)
    work = overlapped(read, compute) + _attention_seconds(shape, server, length, prompts) + links
    launches = factors.prefill_layer_us + (factors.expert_prefill_layer_us if shape.experts else 0.0)
    return overlapped(work, launches * shape.layers * 1e-6) + factors.step_ms * 1e-3


def admission_seconds(shape: SpeedShape, server: Server, length: float, prompts: float = 1) -> float:
    """What one prompt's prefill takes from running sequences: less than alone where a step mixes both.

    The products and links remain; of launches and of reading the weights once more, the share `mixing` does.
    """
    tokens = prompts * length
    compute = matmul_seconds(shape, server, tokens, server.factors.prefill_flops)
    bare = compute + _attention_seconds(shape, server, length, prompts) + link_seconds(shape, server, tokens)
    alone = prefill_seconds(shape, server, length, prompts)
    return (bare + server.factors.mixing * (alone - bare)) / prompts


def weight_seconds(shape: SpeedShape, server: Server, tokens: float) -> float:
    """Reading the weights once: all dense ones, and the experts that `tokens` tokens reach between them."""
    factors = server.factors
    experts = 0.0
    if shape.experts:
        reached = 1 - (1 - shape.experts_per_token / shape.experts) ** tokens
        experts = shape.expert_bytes * reached / factors.expert_bandwidth
    packed = factors.packed_bandwidth if operand_flops(shape, server)[1] else 1.0
    return (shape.dense_bytes + experts) / (memory_bytes_per_s(server) * packed)


def matmul_seconds(shape: SpeedShape, server: Server, tokens: float, share: float) -> float:
    """Multiplying `tokens` tokens with the weights at `share` of the peak; experts with few tokens each are slower."""
    factors = server.factors
    peak, unpacked = operand_flops(shape, server)
    peak *= server.gpus * share
    if shape.weight_format != "16bit" and not unpacked:
        peak *= factors.low_precision_flops
    if shape.experts:
        each = tokens * shape.experts_per_token / shape.experts
        slice_mib = shape.expert_bytes / (shape.layers * shape.experts * server.gpus) / 2**20
        few = (1 + factors.expert_half_tokens / each) * (1 + factors.expert_half_mib / slice_mib)
        peak *= factors.expert_flops / few
    return 2 * shape.active_parameters * tokens / peak


def operand_flops(shape: SpeedShape, server: Server) -> tuple[float, bool]:
    """FLOP/s of one GPU for these weights, and whether they are unpacked to 16 bit first."""
    card = server.card
    native = {
        "16bit": card.flops_16bit,
        "fp8": card.flops_fp8,
        "int8": card.flops_int8,
        "nvfp4": card.flops_fp4,
        # MXFP4 weights meet FP8 activations, where the card has FP4 at all.
        "mxfp4": card.flops_fp8 if card.flops_fp4 else 0.0,
    }.get(shape.weight_format, 0.0)
    return (native, False) if native else (card.flops_16bit, True)


def _attention_seconds(shape: SpeedShape, server: Server, length: float, prompts: float) -> float:
    """Attention of whole prompts: causal, so half of the pairs; two products of 2 FLOPs; always in 16 bit."""
    flops = 4 * shape.attention_width * prompts * length * length / 2
    return flops / (server.card.flops_16bit * server.gpus * server.factors.prefill_flops)


def all_reduce_seconds(shape: SpeedShape, server: Server) -> float:
    """Starting the all-reduces of one step."""
    each = server.factors.all_reduce_us * 1e-6 if server.gpus > 1 else 0.0
    return ALL_REDUCES_PER_LAYER * shape.layers * each


def link_seconds(shape: SpeedShape, server: Server, tokens: float) -> float:
    """Sending the GPUs' results of one step to each other."""
    size = tokens * shape.hidden_size * ACTIVATION_BYTES
    sent = 2 * (server.gpus - 1) / server.gpus * size / (server.card.link_bytes_per_s * server.factors.link)
    return ALL_REDUCES_PER_LAYER * shape.layers * sent


def memory_bytes_per_s(server: Server) -> float:
    """What all GPUs read from memory together, as measured."""
    return server.card.memory_bytes_per_s * server.gpus * server.factors.bandwidth


def overlapped(one: float, other: float) -> float:
    """The time of two things that run side by side for the most part."""
    return float((one**OVERLAP + other**OVERLAP) ** (1 / OVERLAP))
