"""The local plugin's resource types, as a Pulumi program names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi


class LocalResource(pulumi.CustomResource):
    """A resource of the plugin `modelfleet`. Keys of `props` are camelCase, as the plugin names them."""

    def __init__(
        self, kind: str, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__(f"modelfleet:local:{kind}", name, dict(props), opts)
