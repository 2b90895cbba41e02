"""What a stack has proved, through the S3 that its bucket is in."""

from __future__ import annotations

from pathlib import Path

from modelfleet.infra.reading.proved import Memory
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.mirror.store import client


def memory_of(root: Path, stack: LoadedStack) -> Memory:
    """By the environment's credentials; of a local stack by its emulator's. Raises `SetupError` without a bucket."""
    if not stack.config.target.on_this_machine:
        return Memory(root, stack, client())
    from modelfleet.infra.local.emulator import endpoint
    from modelfleet.infra.local.provider import objects

    return Memory(root, stack, objects.client({"endpoint": endpoint(stack.config.local.s3_port)}))


def text_of(root: Path, file: str) -> str | None:
    """A file's text; None where there is none."""
    path = root / file
    return path.read_text(encoding="utf-8") if path.is_file() else None
