"""The JSON header of a safetensors file: names, types and shapes of its tensors, without their values.

The format: eight bytes of length (little-endian), then the header (huggingface/safetensors, README, "Format").
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: A header is a few MiB at most; anything that claims more is not a header.
MAX_HEADER_BYTES = 100 * 1024 * 1024


def file_header(path: Path) -> dict[str, Any] | None:
    """The JSON header of a safetensors file; None when it has none."""
    with path.open("rb") as stream:
        return parse_header(stream.read(8), stream.read)


def parse_header(prefix: bytes, read: Callable[[int], bytes]) -> dict[str, Any] | None:
    """A safetensors header from its eight bytes of length and a function that reads what follows them."""
    if len(prefix) < 8:
        return None
    length = struct.unpack("<Q", prefix)[0]
    if not 0 < length <= MAX_HEADER_BYTES:
        return None
    try:
        header = json.loads(read(length))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None
