"""vLLM's metrics in Ray's own scrape, next to Serve's, one series per replica.

vLLM keeps its metrics in this process's Prometheus registry. `MetricsCopy` copies the samples, unchanged, into Ray's
metrics every few seconds, and the node's agent exports them: `vllm:time_to_first_token_seconds_bucket{le=…}` becomes
`ray_vllm_time_to_first_token_seconds_bucket{le=…}`. vLLM's own Ray logger does the same at every engine step and token,
which costs each request time; this copy does not.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

PERIOD_S = 5.0
PREFIX = "vllm:"
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_]")


@dataclass
class MetricsCopy:
    """Copies this process's vLLM metrics into Ray's, with `application` as one more label."""

    application: str
    _gauges: dict[tuple[str, tuple[str, ...]], Any] = field(default_factory=dict)

    async def run(self) -> None:
        """Copies every `PERIOD_S` seconds until cancelled."""
        while True:
            self.copy_once()
            await asyncio.sleep(PERIOD_S)

    def copy_once(self) -> int:
        """Copies the samples once and returns their number."""
        copied = 0
        for name, labels, value in vllm_samples():
            tags = {**labels, "application": self.application}
            self._gauge(name, tuple(sorted(tags))).set(value, tags=tags)
            copied += 1
        return copied

    def _gauge(self, name: str, keys: tuple[str, ...]) -> Any:
        from ray.util.metrics import Gauge

        if (name, keys) not in self._gauges:
            self._gauges[name, keys] = Gauge(name, description=f"vLLM's {name}", tag_keys=keys)
        return self._gauges[name, keys]


#: What the scaling policy reads, by the name in Ray's spelling.
FOLLOWED = {
    "vllm_time_to_first_token_seconds_count": "first_tokens",
    "vllm_time_to_first_token_seconds_sum": "first_token_s",
    "vllm_kv_cache_usage_perc": "kv_use",
}


def followed() -> dict[str, float]:
    """This replica's first tokens, the seconds until them, and the share of its KV blocks in use.

    Each data parallel rank is an engine with series of its own.
    """
    found: dict[str, list[float]] = {one: [] for one in FOLLOWED.values()}
    for name, _, value in vllm_samples():
        if name in FOLLOWED:
            found[FOLLOWED[name]].append(value)
    shares = found.pop("kv_use")
    return {name: sum(values) for name, values in found.items()} | {"kv_use": sum(shares) / max(1, len(shares))}


def vllm_samples() -> Iterator[tuple[str, dict[str, str], float]]:
    """(name in Ray's spelling, labels, value) of each of vLLM's samples in this process."""
    from prometheus_client import REGISTRY

    for family in REGISTRY.collect():
        if family.name.startswith(PREFIX):
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    yield _NOT_ALLOWED.sub("_", sample.name), dict(sample.labels), sample.value
