"""`Mirrors`: one Job per model that the stack copies to its bucket, named by what it copies."""

from __future__ import annotations

import pulumi

from modelfleet.infra.kubernetes.manifests.everything import mirrors
from modelfleet.infra.kubernetes.objects import SKIP_AWAIT, resource, with_image
from modelfleet.infra.planning.plan import Plan


class Mirrors(pulumi.ComponentResource):
    """Children: the ConfigMap that says where the code is, and a Job per model.

    A hash of what the Job copies is in the resource's name, so its spec is written once: a new image or new code must
    not copy a terabyte again.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        image: pulumi.Input[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:kubernetes:Mirrors", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        where, *jobs = mirrors(plan)
        code = resource(f"{name}-code", where, child)
        for job in jobs:
            job["metadata"]["annotations"] = dict(SKIP_AWAIT)  # only a model's own replicas wait for its mirror
            once = pulumi.ResourceOptions(parent=self, depends_on=[code], ignore_changes=["spec"])
            resource(job["metadata"]["name"], with_image(job, plan.copies.image, image), once)
        self.register_outputs({})
