"""`Mirrors`: one Job per model that the stack copies to its bucket, named by what it copies."""

from __future__ import annotations

import pulumi

from infra.kubernetes.manifests.mirror import job_name, mirror_job, mirrored
from infra.kubernetes.manifests.scripts import serving_code
from infra.kubernetes.objects import resource
from infra.planning.plan import Plan

#: A Job's own await is skipped: a model's replicas wait for its mirror, and no other model should.
SKIP_AWAIT = {"pulumi.com/skipAwait": "true"}


class Mirrors(pulumi.ComponentResource):
    """Children: the ConfigMap that says where the code is, and a Job per model.

    The Job's content is in the resource's name, so its spec is written once: a new image or new code must not copy
    a terabyte again.
    """

    def __init__(self, name: str, plan: Plan, *, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("modelfleet:kubernetes:Mirrors", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        code = resource(f"{name}-code", serving_code(plan), child)
        for model in mirrored(plan):
            job = mirror_job(plan, model)
            job["metadata"]["annotations"] = dict(SKIP_AWAIT)
            once = pulumi.ResourceOptions(parent=self, depends_on=[code], ignore_changes=["spec"])
            resource(job_name(plan, model), job, once)
        self.register_outputs({})
