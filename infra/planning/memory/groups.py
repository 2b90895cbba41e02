"""How vLLM lays the caches of all layers into one pool of blocks, and what a request costs there.

Source: vllm/v1/core/kv_cache_utils.py of vLLM 0.32.0 (`get_kv_cache_groups`, `_max_memory_usage_bytes_from_groups`,
`get_kv_cache_capacity`). Layers that need the same blocks form a group; all groups draw blocks of one size from one
pool, so a group with fewer layers wastes part of each block. Both are why a naive sum over layers is wrong.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from modelfleet.infra.planning.memory.caches import GROWING, Cache, Demand, Kind

#: vLLM makes the larger group the group size when it has less than this times the layers of the smallest.
PADDING_LIMIT = 1.5


@dataclass(frozen=True)
class Pool:
    """Groups of layers over one pool of equal blocks; `block_bytes` are the bytes of one block, of all its layers."""

    groups: tuple[tuple[Cache, ...], ...]
    packed: bool = False

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of the pool: the largest group's pages, as far apart as the kernels need them."""
        largest = max((sum(cache.page for cache in group) for group in self.groups), default=0)
        if not self.packed:
            return largest
        multiple = math.lcm(*(cache.stride for group in self.groups for cache in group))
        return -(-largest // multiple) * multiple

    def request_blocks(self, demand: Demand) -> int:
        """Blocks that vLLM reserves for one request of `demand.length` tokens."""
        return sum(max(cache.blocks(demand) for cache in group) for group in self.groups)

    def request_bytes(self, demand: Demand) -> int:
        """Bytes that vLLM reserves for one request."""
        return self.block_bytes * self.request_blocks(demand)

    def tokens(self, room: int, demand: Demand) -> int:
        """The "GPU KV cache size" that vLLM logs for `room` bytes of cache."""
        blocks = self.request_blocks(demand)
        return int(room // self.block_bytes / blocks * demand.length) if blocks else 0

    def fits(self, room: float, demand: Demand) -> bool:
        """Whether vLLM starts: a request fits beside the null block that the pool keeps."""
        return not self.groups or room - self.block_bytes >= self.request_bytes(demand)


def pool_of(caches: Sequence[Cache], *, packed: bool) -> Pool:
    """The pool of a model's caches. `packed` means a layout whose blocks hold pages of different sizes side by side."""
    if not caches:
        return Pool(())
    if all(caches[0].shares_block_table(cache) for cache in caches):
        return Pool((tuple(caches),))
    if packed and len({cache.page for cache in caches}) > 1:
        return _packed(caches)
    largest = max(cache.page for cache in caches)
    resized = [cache.resized(largest) for cache in caches]
    equal = [cache for cache in resized if cache is not None]
    return _equal_pages(equal) if len(equal) == len(caches) else _all_full(caches)


def _all_full(caches: Sequence[Cache]) -> Pool:
    """vLLM's fallback where pages cannot be made equal: windows are allocated for all tokens."""
    block = next(cache.block for cache in caches if cache.kind in GROWING)
    return Pool((tuple(dataclasses.replace(cache, kind=Kind.FULL, block=block, bound=0) for cache in caches),))


def _equal_pages(caches: Sequence[Cache]) -> Pool:
    """Groups of equal numbers of layers over pages of one size."""
    buckets = list(Counter(caches).items())
    fewest, most = min(count for _, count in buckets), max(count for _, count in buckets)
    size = most if most < fewest * PADDING_LIMIT else fewest
    groups: list[tuple[Cache, ...]] = []
    for cache, count in buckets:
        number = -(-count // size)
        groups += [(cache,) * len(range(start, count, number)) for start in range(number)]
    return Pool(tuple(groups))


@dataclass
class _Bucket:
    """Caches that share a block table, for the packed layout."""

    caches: list[Cache]

    @property
    def counts(self) -> Counter[int]:
        """Layers by page size, in order."""
        return Counter(cache.page for cache in self.caches)

    @property
    def balanced(self) -> bool:
        """Whether each page size has as many layers."""
        return len(set(self.counts.values())) == 1

    @property
    def repeats(self) -> int:
        """Repetitions of the layer pattern."""
        return max(self.counts.values())

    def widest(self, groups: int) -> int:
        """Bytes of the largest of so many groups."""
        return sum(-(-count // groups) * page for page, count in self.counts.items())


def _packed(caches: Sequence[Cache]) -> Pool:
    """Groups whose pages lie side by side in a block (`_get_packed_kv_cache_groups`)."""
    buckets: list[_Bucket] = []
    for cache in caches:
        home = next((one for one in buckets if all(kept.shares_block_table(cache) for kept in one.caches)), None)
        if home is None:
            buckets.append(_Bucket([cache]))
        else:
            home.caches.append(cache)
    floor = max((one.repeats for one in buckets if one.balanced and len(one.counts) > 1), default=0)
    repeats = _least_padding([one.repeats for one in buckets if one.balanced], floor) if floor else None

    def split(bucket: _Bucket) -> int:
        return -(-bucket.repeats // repeats) if bucket.balanced and repeats else 1

    def state(bucket: _Bucket) -> bool:
        kind = bucket.caches[0].kind
        return kind in (Kind.STATE, Kind.RING) or (repeats is None and kind is Kind.WINDOW)

    anchor = max(one.widest(len(one.caches) if state(one) else split(one)) for one in buckets)
    groups: list[tuple[Cache, ...]] = []
    for bucket in buckets:
        number = split(bucket)
        if state(bucket):
            number = max(number, -(-len(bucket.caches) // max(anchor // bucket.caches[0].page, 1)))
        groups += _groups_of(bucket, number)
    return Pool(tuple(groups), packed=True)


def _groups_of(bucket: _Bucket, number: int) -> list[tuple[Cache, ...]]:
    """The bucket's layers in so many groups, each with whole repetitions of the pattern."""
    if number == 1:
        return [tuple(bucket.caches)]
    by_page: dict[int, list[Cache]] = {}
    for cache in bucket.caches:
        by_page.setdefault(cache.page, []).append(cache)
    pattern = list(zip(*by_page.values(), strict=False))
    return [tuple(cache for repeat in pattern[start::number] for cache in repeat) for start in range(number)]


def _least_padding(values: Sequence[int], floor: int) -> int:
    """The size of a group, at least `floor`, that pads these numbers least; the larger of equals."""
    sizes = range(max(1, floor), max(values) + 1)
    return min(sizes, key=lambda size: (sum(-value % size for value in values), -size), default=max(1, floor))
