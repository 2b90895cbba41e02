"""`modelfleet models show`: what one model keeps on a GPU, and how fast it answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from modelfleet.cli import output
from modelfleet.cli.models_bar import memory_bar
from modelfleet.cli.models_speed import AskedLoad, quantization_notice, quantized, speed_line, speed_row, speed_source
from modelfleet.infra.catalog import Accelerator, Catalog
from modelfleet.infra.planning.drafting import NOTHING, Drafting, drafting
from modelfleet.infra.planning.fit import DEFAULT_UTILIZATION, Setting, gpu_memory, memory_in
from modelfleet.infra.planning.memory.answer import GIB, ModelMemory
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.infra.planning.memory.refusals import refusals, undivided
from modelfleet.infra.planning.memory.traits import compared
from modelfleet.infra.planning.node_prices import replica_price
from modelfleet.infra.planning.plan import GpuMemory
from modelfleet.infra.planning.use_findings import use_notices
from modelfleet.infra.reading.measured import known_catalog
from modelfleet.infra.reading.named_model import NamedModel, named_draft, named_model
from modelfleet.serving.config.catalogs import architecture_fault
from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.config.validation import near

#: Without an accelerator: the length, batch and cache for which vLLM's own answers are kept (`python -m tools.probe`).
LENGTH, BATCHED_TOKENS, KV_GIB, CAPABILITY = 8192, 8192, 60.0, (9, 0)


@dataclasses.dataclass(frozen=True)
class Asked:
    """The options of `models show`."""

    accelerator: str | None = None
    gpus: int = 1
    length: int | None = None
    batched_tokens: int | None = None
    utilization: float = DEFAULT_UTILIZATION
    kv_dtype: str = "auto"
    kv_gib: float | None = None
    network: bool = True
    quantization: str | None = None
    load: AskedLoad = dataclasses.field(default_factory=AskedLoad)
    draft: str | None = None
    """METHOD, or METHOD=MODEL for a draft with a checkpoint of its own."""
    draft_tokens: int | None = None
    drafting: Drafting = NOTHING
    """What `draft` names, once it is read."""


def run_show(name: str, asked: Asked, *, as_json: bool = False) -> int:
    """Print what a model keeps on one GPU; returns the exit code, 1 when vLLM would not start."""
    catalog = known_catalog(Path.cwd())
    accelerator = _accelerator(asked.accelerator, catalog)
    found = named_model(name, catalog, network=asked.network)
    model = quantized(found, asked.quantization)
    asked = dataclasses.replace(asked, drafting=_drafting(model, asked, catalog))
    shown = answer(model, asked, accelerator, catalog)
    shown["notices"] += quantization_notice(found, model, asked.quantization)
    if as_json:
        output.show_json(shown)
    else:
        _print(model, shown, asked, accelerator, catalog)
    return 1 if shown["refusals"] else 0


def _drafting(model: NamedModel, asked: Asked, catalog: Catalog) -> Drafting:
    """What --draft names. Raises `SetupError` where it cannot be counted."""
    if asked.draft is None:
        return NOTHING
    method, _, name = asked.draft.partition("=")
    own = named_draft(name, catalog, network=asked.network) if name else None
    section = {"method": method, "model": name, "num_speculative_tokens": asked.draft_tokens}
    found = drafting(section, model.facts.checkpoint, own, name)
    if found.unknown:
        raise SetupError(f"--draft: found {asked.draft!r}, which cannot be counted: {found.unknown}")
    return dataclasses.replace(found, tokens=found.tokens or 1)


def _accelerator(name: str | None, catalog: Catalog) -> Accelerator | None:
    if name is None:
        return None
    found = {one.lower(): row for one, row in catalog.accelerators.items()}.get(name.lower())
    if found is None:
        raise SetupError(f"--accelerator: found {name!r}; {near(name, list(catalog.accelerators))}")
    return found


def answer(model: NamedModel, asked: Asked, accelerator: Accelerator | None, catalog: Catalog) -> dict[str, Any]:
    """The row of one GPU and its speed, with what they rest on and what speaks against them."""
    facts = model.facts
    length = _length(asked, facts.checkpoint.longest)
    capability = accelerator.compute_capability if accelerator else CAPABILITY
    batch = asked.batched_tokens or (accelerator.batched_tokens if accelerator else BATCHED_TOKENS)
    engine = EngineArguments(length, batch, asked.gpus, asked.kv_dtype, capability, drafts=asked.drafting.tokens)
    memory = ModelMemory(facts.checkpoint, engine, asked.drafting.draft)
    room, on_card, setting = asked.kv_gib, None, None
    if accelerator is not None:
        setting = _setting(asked, accelerator, length, batch, facts.quantization)
        on_card = gpu_memory(facts, setting)
        memory = memory_in(facts, setting)
        room = room if room is not None else on_card.kv_cache_mib / 1024
    row = memory.row(KV_GIB if room is None else room).as_json()
    row["weights_gib"] = round(memory.weights.bytes * facts.header_ratio / GIB, 3)
    if on_card and on_card.measured:
        row["weights_gib"] = round(on_card.weights_mib / 1024, 3)
    speed = speed_row(model, setting, asked.load, asked.kv_gib, catalog)
    return {
        "model": model.name,
        **row,
        "encoder_gib": round(facts.encoder_bytes / asked.gpus / GIB, 3),
        "accelerator": accelerator.name if accelerator else None,
        "memory": dataclasses.asdict(on_card) if on_card else None,
        **speed,
        "refusals": _refusals(model, engine, capability) + _no_room(on_card, accelerator, length),
        "notices": _notices(model) + ([NO_DRAFT_SPEED] if asked.draft else []),
        "sources": _sources(model, asked, accelerator, on_card) | speed_source(speed, accelerator),
    }


def _length(asked: Asked, longest: int) -> int:
    """What is asked, else the length of vLLM's kept answers, or more where the load's requests are longer."""
    whole = asked.load.input_tokens + asked.load.output_tokens
    return asked.length or min(max(LENGTH, whole), longest)


def _setting(asked: Asked, accelerator: Accelerator, length: int, batch: int, quantization: str | None) -> Setting:
    return Setting(
        accelerator=accelerator,
        workers=asked.gpus,
        length=length,
        utilization=asked.utilization,
        batched_tokens=batch,
        sequences=accelerator.sequences,
        value_bytes=2.0,
        kv_dtype=asked.kv_dtype,
        quantization=quantization,
        eager=False,
        drafts=asked.drafting.tokens,
        draft=asked.drafting.draft,
    )


def _refusals(model: NamedModel, engine: EngineArguments, capability: tuple[int, int]) -> list[str]:
    checkpoint = model.facts.checkpoint
    found = refusals(checkpoint, engine, capability)
    if fault := undivided(checkpoint, engine.ranks):
        found.append(f"{engine.ranks} GPUs: {fault}")
    if checkpoint.architecture and (dropped := architecture_fault(checkpoint.architecture)):
        found.append(dropped)
    if engine.length > checkpoint.longest:
        found.append(f"{engine.length} tokens: the checkpoint has {checkpoint.longest} positions")
    return found


#: Of a draft only memory is known.
NO_DRAFT_SPEED = "what drafts gain or cost in speed is not in the estimate"


def _notices(model: NamedModel) -> list[str]:
    found = [text for _, text in use_notices(model.row, model.facts)]
    if not compared(model.facts.checkpoint):
        found.append(f"no {model.facts.architecture} was compared with vLLM: it is counted as an ordinary decoder")
    if model.facts.encoder_bytes and model.facts.header_bytes is None:
        found.append("the tower for images or sound is an estimate: no safetensors headers were read")
    return found


def _no_room(memory: GpuMemory | None, accelerator: Accelerator | None, length: int) -> list[str]:
    """vLLM does not start where one sequence of the full length has no room."""
    if memory is None or accelerator is None or memory.full_length_sequences:
        return []
    weights, reserve, cache = (mib / 1024 for mib in (memory.weights_mib, memory.reserve_mib, memory.kv_cache_mib))
    usable = (memory.total_mib - memory.free_mib) / 1024
    text = (
        f"does not fit: of {usable:,.1f} GiB usable on each {accelerator.name}, weights take {weights:,.1f} and the "
        f"reserve {reserve:,.1f}; the {cache:,.1f} left hold no sequence of {length:,} tokens"
    )
    return [text]


#: Numbers that follow from the config by vLLM's rules for its caches.
CACHE_KEYS = (
    "growing_bytes_per_token", "state_bytes_per_sequence", "window_bytes_per_sequence", "request_bytes", "block_size",
    "mamba_mode", "kv_dtype", "layers_with_cache", "layers_sharing_kv",
)  # fmt: skip


def _sources(
    model: NamedModel, asked: Asked, accelerator: Accelerator | None, on_card: GpuMemory | None
) -> dict[str, str]:
    """Where each number of the JSON comes from, by its key; `config` is the file that all rest on."""
    caches = f"vLLM 0.32.0's KV-cache rules over {model.facts.source}"
    room = f"asked: {KV_GIB:g} GiB, as vLLM's own answers were kept for"
    if asked.kv_gib is not None:
        room = "asked: --kv-gib"
    elif accelerator is not None:
        room = "what weights and reserve leave of utilization x the card's usable_mib (accelerators.csv)"
    measured = f"measured on {on_card.measured} (measured.csv)" if on_card and on_card.measured else ""
    return {
        "config": model.facts.source,
        "weights_gib": measured or model.weights_source,
        "params_b": model.weights_source,
        "host_gib": model.weights_source,
        "draft_gib": "the draft's config.json, counted as vLLM 0.32.0 creates it" if asked.draft else "no --draft",
        "encoder_gib": "safetensors headers" if model.facts.header_bytes else "estimate from the config's vision part",
        **dict.fromkeys(CACHE_KEYS, caches),
        "max_model_len": "asked: --length" if asked.length else f"at most {LENGTH:,}, or the load's requests",
        "kv_gib": room,
        "kv_tokens": f"kv_gib over request_bytes, in whole blocks; {caches}",
        **({"reserve": measured or _reserve_source(accelerator)} if accelerator else {}),
        **({"catalog": f"{model.row.source}, {model.row.date}"} if model.row else {}),
    }


def _reserve_source(accelerator: Accelerator) -> str:
    corrected = f" and {accelerator.reserve_more_mib / 1024:.2f} GiB that other models took more on this card"
    return f"estimate, fitted to an H100 on 2026-11-27{corrected if accelerator.reserve_more_mib else ''}"


def _print(
    model: NamedModel, shown: dict[str, Any], asked: Asked, accelerator: Accelerator | None, catalog: Catalog
) -> None:
    row = model.row
    about = [shown["arch"][0], f"{shown['params_b']:,.3g} × 10⁹ stored elements on each of {asked.gpus} GPU"]
    about += [row.licence] if row and row.licence else []
    output.show(f"{model.name}: {', '.join(filter(None, about))}")
    if accelerator is not None:
        for line in memory_bar(shown["memory"]):
            output.show(line)
    output.show(_numbers(shown))
    if line := speed_line(shown):
        output.show(line)
    if not shown["refusals"] and accelerator is None:
        output.show(_cards(model, asked, catalog))
    for text in shown["refusals"]:
        output.say(f"vLLM would not start: {text}", "bold red", stderr=False)
    for text in shown["notices"]:
        output.say(f"notice: {text}", "cyan", stderr=False)
    output.say(f"config: {shown['sources']['config']}; weights: {shown['sources']['weights_gib']}")


def _numbers(shown: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    caches = f"{shown['layers_with_cache']} caches, blocks of {shown['block_size']} tokens, {shown['kv_dtype']}"
    host = f"{shown['host_gib']:g} GiB of it in the node's memory" if shown["host_gib"] else ""
    for name, value, note in (
        ("weights", f"{shown['weights_gib']:,.2f} GiB", host),
        ("drafts", f"{shown['draft_gib']:,.2f} GiB" if shown["draft_gib"] else "0 B", "beside the weights"),
        ("per token", f"{shown['growing_bytes_per_token']:,.0f} B", caches),
        ("states per sequence", f"{shown['state_bytes_per_sequence']:,} B", "recurrent layers, one copy"),
        ("windows per sequence", f"{shown['window_bytes_per_sequence']:,} B", "windows, chunks and rings"),
        ("one full sequence", f"{shown['request_bytes'] / GIB:,.3f} GiB", f"{shown['max_model_len']:,} tokens"),
        ("tokens in the cache", f"{shown['kv_tokens']:,}", f"of {shown['kv_gib']:,.1f} GiB"),
    ):  # fmt: skip
        if not value.startswith("0 B"):
            table.add_row(name, value, note)
    return table


def _cards(model: NamedModel, asked: Asked, catalog: Catalog) -> Table:
    """The fewest GPUs of each accelerator that carry the model at the asked length."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("accelerator", "GPUs", "weights a GPU", "KV cache a GPU", "full sequences", "USD/h"):
        table.add_column(title, justify="left" if title == "accelerator" else "right")
    length = _length(asked, model.facts.checkpoint.longest)
    for card in catalog.accelerators.values():
        for gpus in (1, 2, 4, 8):
            setting = _setting(
                dataclasses.replace(asked, gpus=gpus), card, length, card.batched_tokens, model.facts.quantization
            )
            against = refusals(model.facts.checkpoint, setting.engine, card.compute_capability)
            if against or undivided(model.facts.checkpoint, gpus):
                continue
            held = gpu_memory(model.facts, setting)
            if held.full_length_sequences:
                price = replica_price(card.name, gpus, catalog)
                table.add_row(
                    card.name, str(gpus), f"{held.weights_mib / 1024:.1f} GiB", f"{held.kv_cache_mib / 1024:.1f} GiB",
                    f"{held.full_length_sequences:,}", "-" if price is None else f"{price.usd_per_hour:,.2f}",
                )  # fmt: skip
                break
    return table
