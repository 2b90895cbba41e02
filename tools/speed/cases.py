"""The measurements as inputs of the model: shapes, servers, loads, and what the model predicts for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Literal

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.catalog.speed import FactorTable, Measurement, SpeedCard, measurements, speed_cards
from modelfleet.infra.planning.memory.answer import ModelMemory
from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.infra.planning.speed.inputs import Load, Server, SpeedShape
from modelfleet.infra.planning.speed.serving import mean_context, queue_seconds, running_limit, safe_limit, serve
from modelfleet.infra.planning.speed.shape import in_precision, shape_of
from modelfleet.infra.planning.speed.steps import admission_seconds, decode_seconds, prefill_seconds

Metric = Literal["ttft", "tpot", "throughput"]
METRICS: Final[tuple[Metric, ...]] = ("ttft", "tpot", "throughput")

#: Bytes per GPU that neither weights nor KV cache have.
RESERVE = 1.5e9
#: Measured with text alone, where its decoder is another model's; images need layers that the arithmetic does not know.
STAND_INS = {"neuralmagic/Llama-3.2-11B-Vision-Instruct-FP8-dynamic": "meta-llama/Llama-3.1-8B-Instruct"}
#: A length for the caches' layout; only their bytes per token, window and state count.
LENGTH = 1024


@dataclass(frozen=True)
class Case:
    """One measurement with its inputs; `truth` in seconds and tokens per second."""

    row: Measurement
    shape: SpeedShape
    card: SpeedCard
    server: Server
    load: Load
    truth: Mapping[Metric, float]

    @property
    def source(self) -> str:
        """Who measured: what comes before the number in the row's id."""
        return self.row.id.split("-")[0]


@cache
def checkpoints() -> Mapping[str, Checkpoint]:
    """The catalog's checkpoint of each measured model. Raises `LookupError` for one whose shape it does not know."""
    catalog, found = default_catalog(), {}
    for model in {row.model for row in measurements()}:
        row = catalog.models.get(STAND_INS.get(model, model))
        if row is None or row.config is None:
            raise LookupError(f"{model}: infra/catalog/models.csv and shapes.jsonl do not have its shape")
        found[model] = Checkpoint(row.config, catalog.architecture_defaults)
    return found


@cache
def memory_of(model: str, precision: str, gpus: int, kv_dtype: str) -> ModelMemory:
    """What a measured model keeps on one GPU."""
    checkpoint = in_precision(checkpoints()[model], precision)
    return ModelMemory(checkpoint, EngineArguments(LENGTH, ranks=gpus, kv_dtype=kv_dtype))


def cases(factors: FactorTable) -> list[Case]:
    """Every measurement whose weights fit the memory that it was made on."""
    made = (case_of(row, factors) for row in measurements())
    return [one for one in made if one is not None]


def case_of(row: Measurement, factors: FactorTable) -> Case | None:
    """One measurement with its inputs; None where its weights do not fit."""
    card = speed_cards()[row.accelerator]
    # Where the source does not say it, keys and values are in 16 bit, whatever the checkpoint would choose.
    held = memory_of(row.model, row.precision, row.gpus, "fp8" if row.kv_dtype == "fp8" else "bfloat16")
    shape = shape_of(held, row.input_tokens + row.output_tokens)
    memory = held.weights.bytes * row.gpus
    if memory >= card.memory_bytes * row.gpus:
        return None
    load = Load(row.input_tokens, row.output_tokens, row.requests or float("inf"))
    utilization = row.utilization or (0.95 if row.engine == "tensorrt-llm" else 0.9)
    free = (card.memory_bytes * utilization - RESERVE) * row.gpus - memory
    if row.kv_gib:
        free = row.kv_gib * 2**30 * row.gpus
    each = shape.kv_bytes_per_token + shape.kv_bytes_per_sequence / mean_context(load)
    # vLLM's defaults grow with the card (arg_utils.get_batch_defaults); the other engines' do not.
    large = card.memory_bytes > 70 * 2**30 and not row.accelerator.startswith("A100")
    sequences, batched = (1024, 8192) if large else (256, 2048)
    server = Server(
        card=card,
        factors=factors.of(card, row.engine),
        gpus=row.gpus,
        kv_tokens=max(1.0, free / each),
        max_num_seqs=row.max_num_seqs or {"vllm": sequences, "vllm-v0": 256}.get(row.engine, 2048),
        max_num_batched_tokens=batched if row.engine == "vllm" else 8192,
    )
    truth: dict[Metric, float] = {}
    if row.ttft_ms:
        truth["ttft"] = row.ttft_ms / 1e3
    if row.tpot_ms:
        truth["tpot"] = row.tpot_ms / 1e3
    if row.output_tokens_per_s:
        truth["throughput"] = row.output_tokens_per_s
    return Case(row, shape, card, server, load, truth)


def predicted(case: Case) -> dict[Metric, float]:
    """What the model says of a case, for the metrics it predicts: none of latency above capacity."""
    return {"clients": _clients, "batch": _batch, "rate": _rate, "decode": _decode, "prefill": _prefill}[case.row.load](
        case
    )


def _clients(case: Case) -> dict[Metric, float]:
    speed = serve(case.shape, case.server, case.load)
    found: dict[Metric, float] = {"throughput": speed.output_tokens_per_s}
    if speed.ttft_s is not None and speed.tpot_s is not None:
        found |= {"ttft": speed.ttft_s, "tpot": speed.tpot_s}
    return found


def _decode(case: Case) -> dict[Metric, float]:
    load = case.load
    sequences = min(load.concurrency, running_limit(case.server, load))
    step = decode_seconds(case.shape, case.server, sequences, mean_context(load))
    return {"tpot": step * load.concurrency / sequences}


def _prefill(case: Case) -> dict[Metric, float]:
    return {"ttft": prefill_seconds(case.shape, case.server, case.load.input_tokens)}


def _batch(case: Case) -> dict[Metric, float]:
    """All prompts at once: prefills, then full batches, and a last one that empties."""
    load, server, shape = case.load, case.server, case.shape
    most = running_limit(server, load)
    prompts = load.concurrency if case.row.requests else safe_limit(server, load)
    together = max(1.0, min(prompts, server.max_num_batched_tokens / load.input_tokens))
    prefill = (
        admission_seconds(shape, server, load.input_tokens, together)
        if prompts > 1
        else prefill_seconds(shape, server, load.input_tokens)
    )
    running = min(prompts, most)
    context = mean_context(load)
    tails = {"natural": server.factors.tail, "sharegpt": server.factors.sharegpt_tail}
    tail = tails.get(case.row.lengths, 1.0)
    full = max(0.0, prompts / running - 1) * load.output_tokens * decode_seconds(shape, server, running, context)
    last = load.output_tokens * tail * decode_seconds(shape, server, max(1.0, running / tail), context)
    return {
        "throughput": prompts
        * load.output_tokens
        / (prompts * prefill + full + last + server.factors.request_ms * 1e-3)
    }


def _rate(case: Case) -> dict[Metric, float]:
    """`prompts` requests that arrive at random, `requests` per second; how many run on average is a fixed point."""
    load, server, shape, rate = case.load, case.server, case.shape, case.load.concurrency
    most = running_limit(server, load)
    taken = admission_seconds(shape, server, load.input_tokens)
    alone = prefill_seconds(shape, server, load.input_tokens)
    context = mean_context(load)
    arriving = (case.row.prompts or 1e9) / rate
    running, tpot, busy = 1.0, 0.0, 0.0
    for _ in range(60):
        whole = load.output_tokens * tpot + alone
        # Requests that begin per second, over the whole run.
        begun = rate * arriving / (arriving + whole)
        busy = begun * taken
        if busy > 0.9:
            return {}
        tpot = decode_seconds(shape, server, running, context) / (1 - busy)
        wanted = max(1.0, begun * (load.output_tokens * tpot + alone))
        if wanted > most:
            return {}
        running += 0.5 * (wanted - running)
    step = decode_seconds(shape, server, running, context)
    wait = min(1.0, running - 1) * 1.5 * step + queue_seconds(server, busy, taken)
    return {"tpot": tpot, "ttft": server.factors.request_ms * 1e-3 + alone + wait}


def with_factors(case: Case, table: FactorTable) -> Case:
    """The case with another table's factors."""
    return replace(case, server=replace(case.server, factors=table.of(case.card, case.row.engine)))
