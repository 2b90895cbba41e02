"""What a model keeps on one GPU, in one row: the keys are those of the probe that asks vLLM itself (`tools/probe`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

from modelfleet.infra.planning.memory.caches import GROWING, Demand, Kind
from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.memory.drafts import Draft, draft_caches, draft_size
from modelfleet.infra.planning.memory.engine import EngineArguments
from modelfleet.infra.planning.memory.groups import Pool, pool_of
from modelfleet.infra.planning.memory.layers import Layout, layout_of
from modelfleet.infra.planning.memory.weights import Weights, weights_of

GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One model under one set of arguments, per GPU. `kv_tokens` is what vLLM logs when `kv_gib` are left for it."""

    arch: list[str]
    params_b: float
    weights_gib: float
    block_size: int
    mamba_mode: str
    kv_dtype: str
    layers_with_cache: int
    layers_sharing_kv: int
    growing_bytes_per_token: float
    state_bytes_per_sequence: int
    window_bytes_per_sequence: int
    max_model_len: int
    request_bytes: int
    kv_gib: float
    kv_tokens: int
    tp: int
    host_gib: float
    draft_gib: float
    """Weights of what drafts, beside `weights_gib`; its caches are in the other figures."""

    def as_json(self) -> dict[str, object]:
        """The row as it is printed."""
        return asdict(self)


@dataclass(frozen=True)
class ModelMemory:
    """A model's caches, their pool and its weights, computed once and asked many times; with what drafts for it."""

    checkpoint: Checkpoint
    engine: EngineArguments
    draft: Draft | None = None

    @cached_property
    def layout(self) -> Layout:
        """The caches of all layers."""
        if (draft := self.draft) is None:
            return layout_of(self.checkpoint, self.engine)
        return layout_of(self.checkpoint, self.engine, lambda reading: draft_caches(draft, reading))

    @cached_property
    def pool(self) -> Pool:
        """The caches in groups."""
        return pool_of(self.layout.caches, packed=self.layout.packed)

    @cached_property
    def weights(self) -> Weights:
        """The weights on one GPU."""
        return weights_of(self.checkpoint, self.engine)

    @cached_property
    def draft_bytes(self) -> float:
        """Bytes of the draft's weights on one GPU, without what it shares with the model."""
        return draft_size(self.draft, self.checkpoint, self.engine).bytes if self.draft else 0.0

    @property
    def demand(self) -> Demand:
        """The longest request and the tokens in flight."""
        return Demand(self.engine.length, self.engine.in_flight)

    @property
    def growing_bytes(self) -> float:
        """Bytes per token of all caches that grow, before padding."""
        return sum(cache.per_token for cache in self.layout.caches if cache.kind in GROWING)

    @property
    def state_bytes(self) -> int:
        """Bytes of one copy of a sequence's states, before padding."""
        return sum(cache.content for cache in self.layout.caches if cache.kind is Kind.STATE)

    @property
    def window_bytes(self) -> int:
        """Most bytes of a sequence's windows, chunks and rings."""
        bounded = (Kind.WINDOW, Kind.CHUNK, Kind.RING)
        return sum(cache.most(self.demand) for cache in self.layout.caches if cache.kind in bounded)

    def row(self, kv_gib: float) -> Row:
        """The answer for `kv_gib` GiB of cache."""
        layout, weights = self.layout, self.weights
        return Row(
            arch=[self.checkpoint.architecture],
            params_b=round(weights.elements / 1e9, 3),
            weights_gib=round(weights.bytes / GIB, 3),
            block_size=layout.block,
            mamba_mode=layout.mamba_mode,
            kv_dtype=layout.kv_dtype,
            layers_with_cache=len(layout.caches),
            layers_sharing_kv=layout.sharing,
            growing_bytes_per_token=round(self.growing_bytes, 2),
            state_bytes_per_sequence=self.state_bytes,
            window_bytes_per_sequence=self.window_bytes,
            max_model_len=self.engine.length,
            request_bytes=self.pool.request_bytes(self.demand),
            kv_gib=round(kv_gib, 3),
            kv_tokens=self.pool.tokens(int(kv_gib * GIB), self.demand),
            tp=self.engine.ranks,
            host_gib=round(weights.host_bytes / GIB, 3),
            draft_gib=round(self.draft_bytes / GIB, 3),
        )
