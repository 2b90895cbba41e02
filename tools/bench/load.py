"""A load generator that costs little: one keep-alive connection per client, HTTP/1.1 read by hand."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Target:
    """Where requests go: `base` is `http://host:port`, `path` ends in an OpenAI path."""

    name: str
    base: str
    path: str
    model: str


@dataclass(frozen=True)
class Load:
    """How many requests, how many at a time, and whether the answers are streamed."""

    requests: int
    concurrency: int
    stream: bool
    max_tokens: int = 32


@dataclass(frozen=True)
class Outcome:
    """The result of a load: requests per second, each answer's seconds to its first event, failures."""

    per_second: float
    firsts: Sequence[float]
    failed: int

    @property
    def first_s(self) -> float:
        """Median seconds to the first event."""
        return statistics.median(self.firsts)

    @property
    def first_p99_s(self) -> float:
        """Seconds within which 99 of 100 answers began."""
        return p99(self.firsts)


def p99(values: Iterable[float]) -> float:
    """The 99th percentile: the smallest value that at most one in a hundred exceeds."""
    ordered = sorted(values)
    return ordered[max(0, -(-99 * len(ordered) // 100) - 1)]


def run(target: Target, load: Load) -> Outcome:
    """Send the load and wait for all answers."""
    return asyncio.run(_run(target, load))


async def _run(target: Target, load: Load) -> Outcome:
    firsts: list[float] = []
    failures: list[str] = []
    left = iter(range(load.requests))
    message = _message(target, load)
    begun = time.perf_counter()
    clients = [_client(target, message, left, firsts, failures) for _ in range(load.concurrency)]
    await asyncio.gather(*clients)
    took = time.perf_counter() - begun
    if not firsts:
        raise RuntimeError(
            f"{target.name}: every request failed; the first error: {failures[0] if failures else 'none'}"
        )
    return Outcome(len(firsts) / took, tuple(firsts), len(failures))


def _message(target: Target, load: Load) -> bytes:
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "model": target.model,
            "max_tokens": load.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": load.stream,
        }
    ).encode()
    host = urlsplit(target.base).netloc
    headers = f"host: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    head = f"POST {target.path} HTTP/1.1\r\n{headers}\r\n\r\n"
    return head.encode() + body


async def _client(target: Target, message: bytes, left: object, firsts: list[float], failures: list[str]) -> None:
    parts = urlsplit(target.base)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    for _ in left:  # type: ignore[attr-defined]
        begun = time.perf_counter()
        try:
            writer.write(message)
            status, first = await _answer(reader)
        except (OSError, asyncio.IncompleteReadError) as problem:
            failures.append(repr(problem))
            writer.close()
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            continue
        if status == 200:
            firsts.append(first - begun)
        else:
            failures.append(f"HTTP {status}")
    writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, float]:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    lines = head.lower().split(b"\r\n")
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), None)
    if length is not None:
        await reader.readexactly(length)
        return status, time.perf_counter()
    first = None
    while size := int((await reader.readline()).split(b";")[0], 16):
        await reader.readexactly(size + 2)
        first = first or time.perf_counter()
    await reader.readline()
    return status, first or time.perf_counter()
