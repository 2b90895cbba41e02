"""`LadderReturn`: what brings workers back to an earlier rung of their pool."""

from __future__ import annotations

import pulumi

from modelfleet.infra.kubernetes.manifests.ladder_return import ladder_return
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
        manifests = [with_image(one, plan.ray_cluster.image, image) for one in ladder_return(plan)]
        each(name, manifests, pulumi.ResourceOptions(parent=self))
        self.register_outputs({})
