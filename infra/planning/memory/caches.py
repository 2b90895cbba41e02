"""What one layer keeps of a sequence: vLLM's KV-cache specs as plain numbers.

Source: vllm/v1/kv_cache_interface.py of vLLM 0.32.0; a class there is a `Kind` here. Sizes are bytes on one GPU.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What decides how much a layer keeps of a sequence."""

    FULL = "full"
    """Keys and values of every token."""
    LATENT = "latent"
    """One latent vector of every token (MLA), whole on each GPU."""
    INDEX = "index"
    """The keys of a sparse attention's indexer, of every token or every group of tokens."""
    WINDOW = "window"
    """Keys and values of the last tokens (sliding window), and of the batches in flight."""
    CHUNK = "chunk"
    """Keys and values of the current chunk (chunked local attention), and of the batches in flight."""
    STATE = "state"
    """A recurrent or convolution state, independent of the length."""
    RING = "ring"
    """One block a sequence that is overwritten in place."""


#: Kinds that grow with the sequence: vLLM's FullAttentionSpec and its subclasses, which share groups.
GROWING = frozenset({Kind.FULL, Kind.LATENT, Kind.INDEX})
#: Kinds with a bound that depends on the batches in flight.
BOUNDED = frozenset({Kind.WINDOW, Kind.CHUNK})


@dataclass(frozen=True)
class Demand:
    """What a request and the engine ask of a cache: tokens of the longest sequence, and tokens in flight."""

    length: int
    in_flight: int


@dataclass(frozen=True)
class Cache:
    """The cache of one layer.

    `block` is in tokens; `cell` the bytes that one head slot stores for one state; `ratio` the tokens that one stored
    state covers; `bound` a window or chunk in tokens; `copies` the states that a request holds; `padded` a page that
    is larger than its content; `alignment` a page's multiple. `role` separates caches that vLLM keeps apart although
    their sizes agree.
    """

    kind: Kind
    block: int
    cell: int
    heads: int = 1
    ratio: int = 1
    bound: int = 0
    copies: int = 1
    padded: int | None = None
    alignment: int | None = None
    role: str = ""
    sharded: bool = True
    """False: excluded from context parallelism, which keeps it out of the others' group."""
    kernel: int = 0
    """Tokens of the pages that a kernel addresses; blocks of a packed layout are whole such pages apart. 0: any."""

    @property
    def content(self) -> int:
        """Bytes of one block without padding."""
        states = 1 if self.kind is Kind.STATE else self.block // self.ratio
        return self.heads * states * self.cell

    @property
    def page(self) -> int:
        """Bytes of one block."""
        if self.padded is not None:
            return self.padded
        content = self.content
        return content if self.alignment is None else -(-content // self.alignment) * self.alignment

    @property
    def stride(self) -> int:
        """Bytes that the distance of two blocks is a multiple of (`get_block_stride_alignment`)."""
        tokens = math.gcd(self.kernel, self.block)
        if not self.kernel or tokens == self.block:
            return 1
        return self.heads * max(1, tokens // self.ratio) * self.cell

    @property
    def per_token(self) -> float:
        """Bytes per token before padding, of a cache that grows."""
        return self.content / self.block

    def blocks(self, demand: Demand) -> int:
        """Most blocks that a request holds (`max_memory_usage_bytes` in pages)."""
        if self.kind is Kind.STATE:
            return self.copies
        if self.kind is Kind.RING:
            return 1
        if self.kind is Kind.WINDOW:
            return -(-min(self.bound - 1 + demand.in_flight, demand.length) // self.block) + 1
        if self.kind is Kind.CHUNK:
            return -(-min(self.bound + demand.in_flight, demand.length) // self.block)
        return -(-demand.length // self.block)

    def most(self, demand: Demand) -> int:
        """Most bytes that a request holds."""
        return self.blocks(demand) * self.page

    def resized(self, page: int) -> Cache | None:
        """The cache with a larger page: a larger block where it divides, else padding. None: vLLM cannot."""
        if self.page == page:
            return self
        if self.kind is Kind.STATE:
            return dataclasses.replace(self, padded=page)
        if page % self.page == 0:
            return dataclasses.replace(self, block=self.block * (page // self.page))
        return None if self.kind in (Kind.LATENT, Kind.INDEX) else dataclasses.replace(self, padded=page)

    def shares_block_table(self, other: Cache) -> bool:
        """Whether both always need the same number of blocks (`is_uniform_with_collection`)."""
        if self.block != other.block or self.sharded != other.sharded:
            return False
        if self.kind in GROWING:
            return other.kind in GROWING
        if self.kind in BOUNDED:
            return other.kind is self.kind and other.bound == self.bound
        if self.kind is Kind.STATE:
            same = (other.page, other.copies, other.role) == (self.page, self.copies, self.role)
            return other.kind is Kind.STATE and same
        return other.kind is self.kind
