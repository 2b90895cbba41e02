"""What a stack does now: a pure function from two looks at its metrics pages to the rows of `modelfleet top`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from modelfleet.infra.catalog.slo import latency_histograms
from modelfleet.infra.observability.dashboards import HEALTHY, TOKENS, usd_per_replica
from modelfleet.infra.observability.samples import Between, Look
from modelfleet.infra.planning.plan import ModelPlan, Plan, PoolPlan

RUNNING: Final = "ray_vllm_num_requests_running"
WAITING: Final = "ray_vllm_num_requests_waiting"
READ: Final = "ray_vllm_prompt_tokens_total"
WRITTEN: Final = "ray_vllm_generation_tokens_total"
KV: Final = "ray_vllm_kv_cache_usage_perc"
HITS: Final = "ray_vllm_prefix_cache_hits_total"
QUERIES: Final = "ray_vllm_prefix_cache_queries_total"
#: MiB by card, of Ray's agent on each node (`ray/dashboard/modules/reporter/gpu_providers.py`, Ray 2.60; the
#: description in its scrape says bytes).
CARD_USED: Final = "ray_node_gram_used"
CARD_FREE: Final = "ray_node_gram_available"
#: Of HAProxy's exporter: requests that wait in the gateway, where a model has one queue for all replicas.
QUEUED: Final = "haproxy_backend_current_queue"
#: Of the gateway's own page (infra/gateway/gateway.lua).
KEY_OPEN: Final = "modelfleet_gateway_key_open_requests"
KEY_ASKED: Final = "modelfleet_gateway_key_requests_total"
MIB_PER_GIB: Final = 1024


@dataclass(frozen=True)
class Latency:
    """Seconds at the median and at the 95th percentile; None when nothing was measured."""

    p50_s: float | None
    p95_s: float | None


@dataclass(frozen=True)
class ModelNow:
    """One model. Tokens are per second, `kv_use` and `prefix_hits` shares; None where nobody says, or nothing happened.

    `gpu_gib` is used memory of all cards on the nodes where its replicas run, so it has their other models in it.
    """

    model: str
    replicas: int
    max_replicas: int
    running: int | None
    waiting: int | None
    read_per_s: float
    written_per_s: float
    first_token: Latency
    per_token: Latency
    kv_use: float | None
    prefix_hits: float | None
    gpu_gib: float | None
    gpu_total_gib: float | None
    usd_per_hour: float | None


@dataclass(frozen=True)
class PoolNow:
    """One pool: nodes with a worker on them, at the price of the dearest rung; None where a price is unknown."""

    pool: str
    accelerator: str
    nodes: int
    max_nodes: int
    usd_per_node_hour: float | None
    usd_per_hour: float | None
    gpu_gib: float | None
    gpu_total_gib: float | None


@dataclass(frozen=True)
class KeyNow:
    """One key, by its name: requests that are open, asked per second, and tokens per second of requests that ended."""

    key: str
    open: int
    asked_per_s: float
    read_per_s: float
    written_per_s: float


@dataclass(frozen=True)
class Now:
    """A whole page; `seconds` lie between its two looks."""

    stack: str
    seconds: float
    models: tuple[ModelNow, ...]
    pools: tuple[PoolNow, ...]
    keys: tuple[KeyNow, ...]
    unread: tuple[str, ...]

    @property
    def usd_per_hour(self) -> float | None:
        """What the pools' nodes cost now; None, never 0, where a price is unknown."""
        each = [one.usd_per_hour for one in self.pools]
        known = [one for one in each if one is not None]
        return sum(known) if len(known) == len(each) else None

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "usd_per_hour": self.usd_per_hour}


def names() -> frozenset[str]:
    """Every series that a page is made of."""
    histograms = {f"{latency_histograms()[one].metric}_bucket" for one in ("ttft", "tpot")}
    gauges = {RUNNING, WAITING, KV, CARD_USED, CARD_FREE, QUEUED, KEY_OPEN, HEALTHY}
    return frozenset(histograms | gauges | {READ, WRITTEN, HITS, QUERIES, KEY_ASKED, TOKENS})


def page(plan: Plan, before: Look, after: Look) -> Now:
    """The rows of a plan's models and pools, in its order, and of each key that the metrics name."""
    between = Between(before, after, names())
    return Now(
        plan.stack,
        between.seconds,
        tuple(_model(one, between) for one in plan.models),
        tuple(_pool(one, after, between) for one in plan.pools),
        # Without keys the gateway counts by address.
        tuple(_keys(between)) if plan.gateway.auth != "none" else (),
        after.unread,
    )


def _model(model: ModelPlan, between: Between) -> ModelNow:
    of = {"application": model.slug}
    replicas = round(between.total(HEALTHY, **of) or 0)
    waiting, queued = between.total(WAITING, **of), between.total(QUEUED, proxy=f"model.{model.slug}")
    kv = [one.value for one in between.now(KV, **of)]
    asked = between.increase(QUERIES, **of)
    used, total = _cards(between, {one.page for one in between.now(RUNNING, **of)})
    usd = usd_per_replica(model)
    return ModelNow(
        model=model.model_id,
        replicas=replicas,
        max_replicas=model.replicas.max,
        running=_whole(between.total(RUNNING, **of)),
        waiting=None if waiting is None and queued is None else round((waiting or 0) + (queued or 0)),
        read_per_s=between.rate(READ, **of),
        written_per_s=between.rate(WRITTEN, **of),
        first_token=_latency("ttft", model, between),
        per_token=_latency("tpot", model, between),
        kv_use=sum(kv) / len(kv) if kv else None,
        prefix_hits=between.increase(HITS, **of) / asked if asked else None,
        gpu_gib=used,
        gpu_total_gib=total,
        usd_per_hour=None if usd is None else usd * replicas,
    )


def _pool(pool: PoolPlan, after: Look, between: Between) -> PoolNow:
    """A worker takes a whole node, so its page stands for the node."""
    places = {one.place for one in after.pages if pool.name in one.pools}
    used, total = _cards(between, places)
    price = pool.usd_per_node_hour
    usd = None if price is None else price * len(places)
    return PoolNow(pool.name, pool.accelerator, len(places), pool.max_nodes, price, usd, used, total)


def _keys(between: Between) -> list[KeyNow]:
    """Requests that showed no key are none's, and left out."""
    said = {one.labels["key"] for name in (TOKENS, KEY_OPEN) for one in between.now(name) if one.labels.get("key")}
    return [
        KeyNow(
            key,
            round(between.total(KEY_OPEN, key=key) or 0),
            between.rate(KEY_ASKED, key=key),
            # Cached prompts are in `prompt`, and thoughts in `completion` (serving/usage_metrics.py).
            between.rate(TOKENS, key=key, kind="prompt"),
            between.rate(TOKENS, key=key, kind="completion"),
        )
        for key in sorted(said)
    ]


def _latency(objective: str, model: ModelPlan, between: Between) -> Latency:
    metric = latency_histograms()[objective].metric
    return Latency(*(between.quantile(share, metric, application=model.slug) for share in (0.5, 0.95)))


def _cards(between: Between, places: set[str]) -> tuple[float | None, float | None]:
    """GiB used and there of all cards on these pages' nodes; None where no node has a card."""
    used = [one.value for one in between.now(CARD_USED) if one.page in places]
    free = [one.value for one in between.now(CARD_FREE) if one.page in places]
    return (sum(used) / MIB_PER_GIB, sum(used + free) / MIB_PER_GIB) if used else (None, None)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
