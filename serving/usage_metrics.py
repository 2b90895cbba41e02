"""Tokens by API key in Ray's scrape."""

from __future__ import annotations

from typing import Any

KINDS = {
    "prompt": "prompt_tokens",
    "cached_prompt": "cached_tokens",
    "completion": "completion_tokens",
    "reasoning": "reasoning_tokens",
}


class TokenMetrics:
    """Tokens and requests by key, team, model, adapter and kind, in Ray's scrape."""

    TAGS = ("key", "team", "model", "adapter", "end", "kind")

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        said = "Tokens of ended requests by API key; kind is prompt, cached_prompt, completion or reasoning."
        self._tokens = Counter("modelfleet_tokens", description=said, tag_keys=self.TAGS)
        tags = self.TAGS[:-1]
        self._requests = Counter("modelfleet_requests", description="Ended requests by API key.", tag_keys=tags)

    def count(self, record: dict[str, Any]) -> None:
        """Adds one final record. A cached prompt's tokens count as prompt too, and thoughts as completion."""
        tags = {name: record[name] or "" for name in self.TAGS[:-1]}
        self._requests.inc(1, tags=tags)
        for kind, name in KINDS.items():
            if record[name]:
                self._tokens.inc(record[name], tags={**tags, "kind": kind})
