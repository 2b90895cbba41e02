"""What a stack has proved, through the S3 that its bucket is in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelfleet.infra.reading.proved import Memory
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.mirror.store import client


def memory_of(root: Path, stack: LoadedStack) -> Memory:
    """As the run itself reaches AWS, by `aws:profile` and `aws:region`; of a local stack by its emulator's credentials.

    Raises `SetupError` without a bucket, or without that profile.
    """
    if not stack.config.target.on_this_machine:
        return Memory(root, stack, client(session=_session(stack)))
    from modelfleet.infra.local.emulator import endpoint
    from modelfleet.infra.local.provider import objects

    return Memory(root, stack, objects.client({"endpoint": endpoint(stack.config.local.s3_port)}))


def _session(stack: LoadedStack) -> Any:
    import boto3
    from botocore.exceptions import ProfileNotFound

    try:
        return boto3.Session(profile_name=stack.profile, region_name=stack.region)
    except ProfileNotFound as error:
        fix = "add it to ~/.aws/config, or correct aws:profile or AWS_PROFILE"
        raise SetupError(f"stack {stack.name}: {error}; {fix}") from None


def text_of(root: Path, file: str) -> str | None:
    """A file's text; None where there is none."""
    path = root / file
    return path.read_text(encoding="utf-8") if path.is_file() else None
