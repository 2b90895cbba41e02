"""The speed of a replica: what must hold whatever the factors are, and figures that people see."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.infra.catalog.speed import Factors, SpeedCard, SpeedRange, fitted_factors, measurements, speed_cards
from modelfleet.infra.planning.speed import (
    Load,
    Server,
    SpeedShape,
    estimate_speed,
    measurement_of,
    serve,
    server_with,
)
from modelfleet.infra.planning.speed.inputs import PRECISION_FORMATS
from modelfleet.infra.planning.speed.steps import decode_seconds, prefill_seconds

#: Llama 3.1 8B in 16 bit: 7.5 B weights that a step reads, 128 KiB of keys and values a token.
LLAMA_8B = SpeedShape(32, 4096, 8.03e9, 15.0e9, 4096 * 32, 131072)
#: Mixtral 8x7B: two of eight experts.
MIXTRAL = SpeedShape(32, 4096, 12.9e9, 3.2e9, 4096 * 32, 131072, expert_bytes=90.2e9, experts=8, experts_per_token=2)
SHAPES = st.sampled_from([LLAMA_8B, MIXTRAL, dataclasses.replace(LLAMA_8B, weight_format="fp8", dense_bytes=8e9)])
CARDS = st.sampled_from(sorted(speed_cards()))
LENGTHS = st.integers(1, 16000)


def replica(
    accelerator: str = "H100", *, gpus: int = 1, kv_tokens: float = 440_000, max_num_seqs: int = 1024
) -> Server:
    server = server_with(
        accelerator, gpus=gpus, kv_tokens=kv_tokens, max_num_seqs=max_num_seqs, max_num_batched_tokens=8192
    )
    assert server is not None
    return server


def faster(server: Server, **peaks: float) -> Server:
    """The same server on a card of which these peaks are twice as high."""
    card = dataclasses.replace(server.card, **{name: getattr(server.card, name) * by for name, by in peaks.items()})
    return dataclasses.replace(server, card=card)


@settings(max_examples=60, deadline=None)
@given(SHAPES, CARDS, LENGTHS, LENGTHS, st.integers(1, 500), st.sampled_from([1, 2, 8]))
def test_one_more_client_never_lowers_the_throughput(
    shape: SpeedShape, card: str, prompt: int, answer: int, clients: int, gpus: int
) -> None:
    server = replica(card, gpus=gpus)
    fewer = serve(shape, server, Load(prompt, answer, clients)).output_tokens_per_s
    more = serve(shape, server, Load(prompt, answer, clients + 1)).output_tokens_per_s
    assert more >= fewer * 0.999999


@settings(max_examples=60, deadline=None)
@given(SHAPES, CARDS, LENGTHS, st.integers(1, 500), st.sampled_from([1, 2, 8]))
def test_faster_memory_compute_and_links_slow_nothing(
    shape: SpeedShape, card: str, length: int, sequences: int, gpus: int
) -> None:
    server = replica(card, gpus=gpus)
    for peak in ("memory_bytes_per_s", "flops_16bit", "flops_fp8", "link_bytes_per_s"):
        better = faster(server, **{peak: 2.0})
        assert decode_seconds(shape, better, sequences, length) <= decode_seconds(shape, server, sequences, length)
        assert prefill_seconds(shape, better, length) <= prefill_seconds(shape, server, length)


@settings(max_examples=60, deadline=None)
@given(SHAPES, CARDS, LENGTHS, LENGTHS, st.integers(1, 2000))
def test_ranges_are_ordered_and_a_saturated_load_has_no_latency(
    shape: SpeedShape, card: str, prompt: int, answer: int, clients: int
) -> None:
    found = estimate_speed(shape, replica(card, kv_tokens=100_000), Load(prompt, answer, clients))
    assert found.saturated == ((clients > 1 and clients * (prompt + answer) > 100_000) or clients > 1024)
    assert (found.ttft_ms is None) == (found.tpot_ms is None) == found.saturated
    for one in (found.ttft_ms, found.tpot_ms, found.output_tokens_per_second):
        assert one is None or 0 < one.low <= one.expected <= one.high


def test_a_saturated_replica_gives_what_a_full_batch_gives() -> None:
    server = replica(max_num_seqs=64)
    full = serve(LLAMA_8B, server, Load(1000, 500, 64))
    above = serve(LLAMA_8B, server, Load(1000, 500, 1000))
    assert above.saturated and not full.saturated
    assert above.output_tokens_per_s == full.output_tokens_per_s
    assert above.running == 64


def test_one_request_on_an_h100_is_as_fast_as_measured_there() -> None:
    """6.3 ms a step and 28 ms for 1,024 tokens were measured on 2026-11-27 (measurements.csv, OWN)."""
    server = replica()
    assert decode_seconds(LLAMA_8B, server, 1, 1088) == pytest.approx(6.3e-3, rel=0.05)
    assert prefill_seconds(LLAMA_8B, server, 1024) == pytest.approx(28e-3, rel=0.15)


def test_a_load_of_a_measured_case_shows_the_measurement_instead() -> None:
    row = next(one for one in measurements() if one.id == "INFX-001")
    server = replica(row.accelerator, gpus=row.gpus)
    near = Load(1000, 1000, 4)
    found = measurement_of(row.model, PRECISION_FORMATS[row.precision], server, near, measurements())
    assert found is not None and found.model == row.model
    said = estimate_speed(LLAMA_8B, server, near, measured=found)
    assert said.basis == f"measured: {found.accelerator}, {found.date}"
    assert said.ttft_ms is not None and said.ttft_ms.expected == found.ttft_ms
    assert said.source == found.source
    assert (
        measurement_of(row.model, PRECISION_FORMATS[row.precision], server, Load(1000, 1000, 30), measurements())
        is None
    )
    assert measurement_of("org/other", PRECISION_FORMATS[row.precision], server, near, measurements()) is None


def test_an_estimate_says_so_and_is_plain_json() -> None:
    found = estimate_speed(LLAMA_8B, replica(), Load(1024, 256, 8))
    printed = json.loads(json.dumps(dataclasses.asdict(found)))
    assert printed["basis"] == "estimate"
    assert set(printed["tpot_ms"]) == {"low", "expected", "high"}
    assert 5 < printed["tpot_ms"]["expected"] < 20, "milliseconds"
    assert 20 < printed["ttft_ms"]["expected"] < 500, "milliseconds"
    assert printed["saturated"] is False


def test_a_card_that_nobody_measured_has_the_common_factors_and_the_wider_ranges() -> None:
    measured, other = replica("B200"), replica("B300")
    assert measured.measured_card and not other.measured_card
    common = fitted_factors().values["bandwidth", "*"]
    assert other.factors.bandwidth == common != measured.factors.bandwidth
    keys = itertools.product(("ttft", "tpot", "throughput"), ("single", "loaded"), ("dense", "experts"))
    wide = {
        (card, *key): SpeedRange(0.5 if card == "other" else 0.9, 1.2) for key in keys for card in ("measured", "other")
    }
    for server, low in ((measured, 0.9), (other, 0.5)):
        found = estimate_speed(LLAMA_8B, server, Load(100, 100), ranges=wide).output_tokens_per_second
        assert found.low == pytest.approx(low * found.expected)
        assert found.high == pytest.approx(1.2 * found.expected)
    assert server_with("H900", gpus=1, kv_tokens=1, max_num_seqs=1, max_num_batched_tokens=1) is None


def test_weights_that_a_card_cannot_compute_with_are_unpacked() -> None:
    """FP8 halves what a step reads also on an A100; its prefill gains nothing there, as the products are in 16 bit."""
    fp8 = dataclasses.replace(LLAMA_8B, weight_format="fp8", dense_bytes=LLAMA_8B.dense_bytes / 2)
    a100, h100 = replica("A100-80G"), replica("H100")
    assert decode_seconds(fp8, a100, 1, 100) < 0.8 * decode_seconds(LLAMA_8B, a100, 1, 100)
    assert prefill_seconds(fp8, a100, 4096) > 0.95 * prefill_seconds(LLAMA_8B, a100, 4096)
    assert prefill_seconds(fp8, h100, 4096) < 0.75 * prefill_seconds(LLAMA_8B, h100, 4096)


def test_a_larger_batch_reads_more_experts_and_then_no_more() -> None:
    factors = Factors(**{one.name: 1.0 for one in dataclasses.fields(Factors)})
    card = SpeedCard("X", 1e12, 1e30, 0, 0, 0, "nvlink", 1e12, 80e9)
    server = Server(card, dataclasses.replace(factors, step_ms=0, sequence_us=0, layer_us=0, expert_layer_us=0))
    model = SpeedShape(1, 1, 1, 0, 0, 0, expert_bytes=8e9, experts=8, experts_per_token=2)
    assert decode_seconds(model, server, 1, 1) == pytest.approx(2e-3), "a quarter of 8 GB at 1 TB/s"
    assert decode_seconds(model, server, 2, 1) == pytest.approx(3.5e-3)
    assert decode_seconds(model, server, 200, 1) == pytest.approx(8e-3)


def test_a_million_tokens_take_the_price_of_the_seconds_that_they_need() -> None:
    """A measured 1,000 tokens a second make a million in 1,000 s; 3.60 USD an hour are 0.001 USD a second."""
    row = dataclasses.replace(measurements()[0], ttft_ms=100.0, tpot_ms=10.0, output_tokens_per_s=1000.0)
    priced = estimate_speed(LLAMA_8B, replica(), Load(1024, 256, 8), measured=row, usd_per_hour=3.6)
    assert priced.usd_per_million_tokens == pytest.approx(1.0)
    assert (priced.input_tokens, priced.output_tokens, priced.concurrency) == (1024, 256, 8)
    unknown = estimate_speed(LLAMA_8B, replica(), Load(1024, 256, 8), measured=row)
    assert unknown.usd_per_million_tokens is None, "a price that nobody knows is never 0"
