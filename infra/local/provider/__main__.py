"""`pulumi-resource-modelfleet`."""

from __future__ import annotations

from pathlib import Path

from infra.local.provider.application import APPLICATION
from infra.local.provider.gateway import GATEWAY
from infra.local.provider.objects import CODE, WEIGHTS, end_fetching
from infra.local.provider.ray import RAY
from infra.local.provider.session import LocalSession
from infra.provider import Plugin, Props, main

RESOURCES = (WEIGHTS, CODE, RAY, APPLICATION, GATEWAY)


class LocalPlugin(Plugin[LocalSession]):
    """The local target's resources."""

    name = "modelfleet"
    version = "0.1.0"

    def configure(self, settings: Props) -> LocalSession:
        """There is nothing to set: every resource says what it needs."""
        return LocalSession(root=Path(__file__).resolve().parents[3])

    def explain(self, error: Exception) -> str:
        """A sentence for an error that no resource foresaw."""
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(LocalPlugin({resource.token: resource for resource in RESOURCES}, {}), at_end=end_fetching)
