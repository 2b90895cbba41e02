"""`Mirrors`: one Job per model that the stack copies to its bucket, named by what it copies."""

from __future__ import annotations

import pulumi

from modelfleet.infra.kubernetes.manifests.everything import mirrors
from modelfleet.infra.kubernetes.manifests.pods import Manifest
from modelfleet.infra.kubernetes.objects import each, job_once, resource, with_image
from modelfleet.infra.planning.plan import Plan


class Mirrors(pulumi.ComponentResource):
    """Children: ConfigMaps with the Jobs' program and where the code is, and a Job per model.

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
        where, *rest = mirrors(plan)
        parts = [one for one in rest if one["kind"] != "Job"]
        first = [resource(f"{name}-code", where, child), *each(name, parts, child)]
        for job in (one for one in rest if one["kind"] == "Job"):
            # Only a model's own replicas wait for its mirror.
            job_once(_resource_name(plan, job), with_image(job, plan.copies.image, image), self, first)
        self.register_outputs({})


def _resource_name(plan: Plan, job: Manifest) -> str:
    """With the namespace where that is another: a Job that moves is a new resource, for it would keep its old spec."""
    name = str(job["metadata"]["name"])
    return f"{plan.mirror_namespace}-{name}" if plan.own_mirror_namespace else name
