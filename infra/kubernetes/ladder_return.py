"""`LadderReturn`: what brings workers back to an earlier rung of their pool."""

from __future__ import annotations

import pulumi

from modelfleet.infra.kubernetes.manifests.ladder_return import LADDERS, ladder_return, ladders
from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.objects import each, with_image
from modelfleet.infra.planning.plan import Plan


class LadderReturn(pulumi.ComponentResource):
    """Children: priority, account, rights, program and Deployment; none where no pool has `returnAfterMinutes`."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        image: pulumi.Input[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:kubernetes:LadderReturn", name, None, opts)
        manifests = [_built(one, plan, image) for one in ladder_return(plan)]
        each(name, manifests, pulumi.ResourceOptions(parent=self))
        self.register_outputs({})


def _built(manifest: Manifest, plan: Plan, image: pulumi.Input[str] | None) -> Manifest:
    """The manifest with the image that was built; in the ConfigMap it is within a text."""
    if image is None or manifest["kind"] != "ConfigMap":
        return with_image(manifest, plan.ray_cluster.image, image)
    text = pulumi.Output.from_input(image).apply(lambda digest: ladders(plan, digest))
    return {**manifest, "data": {**manifest["data"], LADDERS: text}}
