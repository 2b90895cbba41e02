"""`ManifestKey`: what pods know of the key that the stack makes to sign manifests with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi

from modelfleet.infra.kubernetes.manifests.manifest_key import manifest_key
from modelfleet.infra.kubernetes.objects import resource
from modelfleet.infra.planning.plan import Plan


@dataclass(frozen=True)
class Signing:
    """The key that the stack made: its ARN, and its public half as base64 of its DER."""

    arn: pulumi.Input[str]
    public: pulumi.Input[str]


class ManifestKey(pulumi.ComponentResource):
    """Children: ConfigMap `manifest-key` in each namespace whose pods need it; `ready` are these."""

    ready: Sequence[pulumi.Resource]

    def __init__(self, name: str, plan: Plan, signing: Signing, *, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("modelfleet:kubernetes:ManifestKey", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        self.ready = [
            resource(f"{name}-{one['metadata']['namespace']}", one, child)
            for one in manifest_key(plan, signing.arn, signing.public)
        ]
        self.register_outputs({})
