"""What AWS refuses while we read, as one message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.errors import MirrorError


@contextmanager
def plain_setup_errors(what: str, fix: str, *, service: str = "S3") -> Iterator[None]:
    """Turns the SDK's errors into a `SetupError`: `what` was asked, what `service` said, and `fix` where it refuses."""
    from modelfleet.serving.mirror.store import plain_errors  # loads boto3, which few commands need

    try:
        with plain_errors(what, service, fix):
            yield
    except MirrorError as error:
        raise SetupError(str(error)) from None
