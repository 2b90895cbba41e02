"""A light stand-in for vLLM replicas that models what routing changes: the prefix cache, and who waits for a prefill.

A replica keeps hashes of blocks, each with that of the block before it, and drops those that were used longest ago: as
vLLM's prefix cache does. Prefills run one after the other at a fixed speed, over the tokens that are not cached; then
the answer takes a fixed time per token, longer the more answers are written at once. Nothing is computed: the figures
compare ways of routing, and say nothing about a GPU.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

#: Bytes of a block: 16 tokens of 4 bytes, vLLM's block size.
BLOCK_TOKENS, BLOCK_BYTES = 16, 64


@dataclass(frozen=True)
class Speed:
    """Tokens of a prefill per second; seconds per answered token alone, and more for each other answer."""

    prefill: float = 20_000.0
    token_s: float = 0.004
    beside_s: float = 0.0002


@dataclass
class PrefixCache:
    """Blocks of prompts, at most `capacity` of them."""

    capacity: int
    blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def take(self, salt: str, text: str) -> tuple[int, int]:
        """Tokens of the prompt that were cached, and all of them; now all are cached. The last block is never a hit."""
        hashes = list(_chain(salt, text.encode()))
        hits = 0
        while hits < len(hashes) - 1 and hashes[hits] in self.blocks:
            hits += 1
        for one in reversed(hashes):  # the end of a prompt goes first
            self.blocks[one] = None
            self.blocks.move_to_end(one)
        while len(self.blocks) > self.capacity:
            self.blocks.popitem(last=False)
        return hits * BLOCK_TOKENS, len(hashes) * BLOCK_TOKENS


def _chain(salt: str, text: bytes) -> Iterable[int]:
    last = hash(salt)
    for at in range(0, len(text), BLOCK_BYTES):
        last = hash((last, text[at : at + BLOCK_BYTES]))
        yield last


@dataclass
class PrefixReplica:
    """One replica of application `slug` on its own port; counts requests and tokens."""

    port: int
    slug: str
    cache: PrefixCache
    speed: Speed = field(default_factory=Speed)
    requests: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    most_open: int = 0
    open: int = 0
    _prefill: asyncio.Lock = field(default_factory=asyncio.Lock)
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listens on the loopback address."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/-/routes", self._routes)
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """Closes the port; open requests end."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _routes(self, request: web.Request) -> web.Response:
        return web.json_response({f"/{self.slug}": self.slug})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = await request.json()
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})

        async def begin() -> None:
            await answer.prepare(request)
            await answer.write(b"data: first\n\n")

        await self.serve(body, begin)
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def serve(self, body: dict[str, Any], begin: Callable[[], Awaitable[None]]) -> None:
        """One chat; `begin` is called at its first token."""
        self.requests += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            async with self._prefill:
                cached, tokens = self.cache.take(body["model"], _prompt(body))
                self.tokens, self.cached_tokens = self.tokens + tokens, self.cached_tokens + cached
                await asyncio.sleep((tokens - cached) / self.speed.prefill)
            await begin()
            await asyncio.sleep(body["max_tokens"] * (self.speed.token_s + self.speed.beside_s * (self.open - 1)))
        finally:
            self.open -= 1


def _prompt(body: dict[str, Any]) -> str:
    """As a chat template would write it."""
    return "".join(f"<{one['role']}>{one['content']}" for one in body["messages"])
