"""How a model could run without a GPU: on which node, with what room and price. Pure.

Asked for by name, or by a stack that has nothing else. There is no estimate of its speed: nobody measured one here.
"""

from __future__ import annotations

import math

from modelfleet.infra.catalog import Catalog, InstanceType
from modelfleet.infra.planning.fit import sequence_bytes, weight_bytes
from modelfleet.infra.planning.host_memory import CACHE_BYTES, PROCESSES_BYTES, PROCESSOR
from modelfleet.infra.planning.node_prices import price_of
from modelfleet.infra.planning.nodes import MIB, node_shape
from modelfleet.infra.planning.offers import Offer, Published, Wish, setting_for
from modelfleet.infra.planning.plan import GpuMemory
from modelfleet.serving.config.accelerators import CPU

#: Fewer answer too slowly for anybody who waits. A guess: not measured.
LEAST_VCPUS = 8


def cpu_offers(checkpoint: Published, wish: Wish, catalog: Catalog, *, whole_node: bool) -> list[Offer]:
    """One replica on each type of node that holds it, the cheapest first; none for compressed weights.

    vLLM's CPU build runs some of these, but the plan does not know which. With `whole_node` a replica takes all CPUs,
    as those of a node that the stack makes.
    """
    if checkpoint.facts.quantization:
        return []
    found = [
        offer
        for one in catalog.instance_types_with(CPU)
        if one.vcpus >= LEAST_VCPUS and (offer := _offer(checkpoint, wish, one, catalog, whole_node)) is not None
    ]
    return sorted(found, key=lambda offer: (offer.usd_per_hour, offer.cpus, offer.instance_type))


def _offer(checkpoint: Published, wish: Wish, node: InstanceType, catalog: Catalog, whole_node: bool) -> Offer | None:
    """The node's memory as that of a card: weights, the cache as the plan sizes it, processes, and what is left."""
    setting = setting_for(checkpoint.facts, wish.length, PROCESSOR, 1)
    shape, price = node_shape([node], catalog, made_here=True), price_of(node.name, catalog, wish.region)
    weights, sequence = weight_bytes(checkpoint.facts, setting), sequence_bytes(checkpoint.facts, setting)
    cache = max(CACHE_BYTES, sequence)
    free = shape.memory_mib * MIB - weights - cache - PROCESSES_BYTES
    if price is None or free < 0:
        return None
    memory = GpuMemory(
        total_mib=shape.memory_mib,
        weights_mib=weights / MIB,
        kv_cache_mib=cache / MIB,
        reserve_mib=PROCESSES_BYTES / MIB,
        free_mib=free / MIB,
        kv_bytes_per_token=math.ceil(sequence / wish.length),
        full_length_sequences=cache // sequence if sequence else setting.sequences,
    )
    return Offer(
        checkpoint,
        PROCESSOR,
        1,
        wish.length,
        memory,
        None,
        usd_per_hour=max(1, wish.min_replicas) * price.usd_per_hour,
        usd_per_replica_hour=price.usd_per_hour,
        price_region=price.region,
        cpus=shape.cpu_millis // 1000 - 1 if whole_node else 1,
        instance_type=node.name,
    )
