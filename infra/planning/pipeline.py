"""Replicas over several nodes (`pipeline_parallel_size`): what they ask of their pool, and where they make no sense.

The stages of a replica send each other the hidden states of every token. Inside a node that is free; between nodes it
takes the network's time, and between zones a price of its own and a network that nobody promises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from modelfleet.infra.catalog import REFERENCE_REGION, Catalog
from modelfleet.infra.catalog.speed import speed_cards
from modelfleet.infra.planning.candidates import PoolChoice
from modelfleet.infra.planning.demand import Demand
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.fit import Setting, memory_in, setting_of, uncounted_by_stage
from modelfleet.infra.planning.speed.shape import shape_of
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.document import KeyPath
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.serve_options import stages_of

STAGES: KeyPath = ("engine_config", "engine_kwargs", "pipeline_parallel_size")
#: Share of its peak that a card computes a full batch with. Of ours, prefill of dense models: docs/planning.md.
COMPUTED = 0.5
#: Hidden states and residual, in 16 bit (vLLM 0.32 `IntermediateTensors`).
SENT_BYTES = 4


def pipeline_findings(
    stack: LoadedStack, choices: Sequence[PoolChoice], facts: Mapping[str, ModelFacts | None], catalog: Catalog
) -> list[Finding]:
    """What is wrong with replicas over several nodes: their pool, their network, and models nobody counts by stage."""
    return [
        finding
        for index, choice in enumerate(choices)
        for demand in choice.demands
        if stages_of(demand.model.config) > 1
        for finding in _findings(stack, index, choice, demand, facts.get(demand.model_id), catalog)
    ]


def _findings(
    stack: LoadedStack,
    index: int,
    choice: PoolChoice,
    demand: Demand,
    facts: ModelFacts | None,
    catalog: Catalog,
) -> Iterator[Finding]:
    pool, at = choice.pool, demand.model.document.finding
    stages = stages_of(demand.model.config)
    if stack.config.target.on_this_machine:
        yield at(STAGES, f"found {stages}, but this machine is one node; leave it out here")
        return
    zones = pool.zones or []
    if not stack.config.target.makes_cluster:
        message = (
            f"{demand.model_id} has replicas over {stages} nodes, which must be in one zone, and only target eks puts "
            "a pool's nodes there: label nodes of one zone alone for this pool"
        )
        yield stack.finding(("pools", index), message, Severity.WARNING)
    elif len(zones) != 1:
        found = f"found {', '.join(zones)}" if zones else "is not set, which means all zones"
        message = (
            f"{found}, and {demand.model_id} has replicas over {stages} nodes, which must be in one: name one zone"
        )
        yield stack.finding(("pools", index, "zones"), message)
    if pool.fallback:
        message = f"{demand.model_id} has replicas over {stages} nodes, whose cards must be equal; use another pool"
        yield stack.finding(("pools", index, "fallback"), message)
    if stack.config.kubernetes.ray_tls:
        message = (
            f"encrypts what Ray sends; the stages of {demand.model_id} send each other hidden states as they are, and "
            "believe whoever reaches their ports: only a NetworkPolicy that is enforced keeps others out"
        )
        yield stack.finding(("kubernetes", "rayTls"), message, Severity.WARNING)
    accelerator = catalog.accelerators.get(demand.model.config.accelerator)
    if facts is None or accelerator is None:
        return
    setting = setting_of(demand.model.config, facts, accelerator)
    if uncounted_by_stage(facts, setting):
        message = (
            f"found {stages}, but the layers of {demand.model.config.engine_config.weights_id} keep different caches, "
            "which the plan does not count by stage; serve it on one node"
        )
        yield at(STAGES, message)
    elif slow := _slow_network(facts, setting, choice, catalog):
        yield at(STAGES, f"found {stages}, but {slow}")


def network_seconds(hidden: int, tokens: int, gbps: float) -> float:
    """Seconds in which the hidden states of so many tokens go from one stage to the next."""
    return tokens * hidden * SENT_BYTES * 8 / (gbps * 1e9)


def stage_seconds(facts: ModelFacts, setting: Setting) -> float | None:
    """Seconds in which a stage computes a full batch; None where the card's peak is not known."""
    card = speed_cards().get(setting.accelerator.name)
    if card is None:
        return None
    whole = shape_of(memory_in(facts, dataclasses.replace(setting, stages=1, stage=0)))
    work = 2 * whole.active_parameters / setting.stages * setting.batched_tokens
    return float(work / (setting.workers * card.flops_16bit * COMPUTED))


def _slow_network(facts: ModelFacts, setting: Setting, choice: PoolChoice, catalog: Catalog) -> str:
    """Why the network would hold the pipeline up, with what a faster one costs; empty where it does not."""
    known = {one.name: one for one in catalog.instance_types_with(setting.accelerator.name)}
    types = [known[name] for name in choice.candidate.instance_types if name in known]
    computed = stage_seconds(facts, setting)
    if not types or computed is None:
        return ""
    gbps = min(one.network_gbps for one in types)
    sent = network_seconds(facts.hidden_size, setting.batched_tokens, gbps)
    if sent <= computed:
        return ""
    able = sorted(
        (catalog.usd_per_hour(one.name, region=REFERENCE_REGION) or float("inf"), one.name, one.network_gbps)
        for one in known.values()
        if one.gpus >= setting.workers
        and network_seconds(facts.hidden_size, setting.batched_tokens, one.network_gbps) <= computed
    )
    said = (
        f"{choice.candidate.name} has {gbps:g} Gbit/s: a batch of {setting.batched_tokens:,} tokens takes {sent:.2f} s "
        f"from stage to stage and {computed:.2f} s in one"
    )
    if not able:
        return f"{said}; serve it on one node"
    usd, name, fast = able[0]
    mine = catalog.usd_per_hour(choice.candidate.instance_types[0], region=REFERENCE_REGION)
    instead = f" instead of {mine:.2f}" if mine is not None else ""
    return f"{said}; write instanceTypes: [{name}] ({fast:g} Gbit/s, {usd:.2f}{instead} USD/h), or serve it on one node"
