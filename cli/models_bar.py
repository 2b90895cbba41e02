"""One GPU's memory as a bar: weights, reserve, KV cache, free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH = 72
PARTS = (
    ("weights_mib", "█", "weights"),
    ("reserve_mib", "▓", "reserve"),
    ("kv_cache_mib", "▒", "KV cache"),
    ("free_mib", "░", "left free"),
)


def basis(memory: Mapping[str, Any]) -> str:
    """`measured on H100, 2026-11-27`, or `estimate`: what weights and reserve rest on."""
    return f"measured on {memory['measured']}" if memory.get("measured") else "estimate"


def memory_bar(memory: Mapping[str, Any]) -> list[str]:
    """Two lines: the bar, and what its parts are. Parts beyond the card's memory end in `>`."""
    total = memory["total_mib"]
    cells = "".join(
        mark * max(1 if memory[key] > 0 else 0, round(WIDTH * memory[key] / total)) for key, mark, _ in PARTS
    )
    bar = cells[:WIDTH] + (">" if len(cells) > WIDTH + 3 else "")
    legend = "  ".join(f"{mark} {name} {memory[key] / 1024:,.1f}" for key, mark, name in PARTS)
    held = f"{memory['full_length_sequences']:,} full-length sequences at once"
    return [bar, f"{legend} of {total / 1024:,.1f} GiB; {held}; {basis(memory)}"]
