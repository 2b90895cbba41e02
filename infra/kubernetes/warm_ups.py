"""`WarmUps`: one Job per sealed compile cache, made once its model is served."""

from __future__ import annotations

import pulumi

from modelfleet.infra.kubernetes.manifests.everything import warm_ups
from modelfleet.infra.kubernetes.objects import each, job_once, with_image
from modelfleet.infra.planning.plan import Plan


class WarmUps(pulumi.ComponentResource):
    """Children: the Jobs' PriorityClass, and a Job per seal, for which no run waits.

    A seal's key is in the Job's name, so its spec is written once: a new release of the serving code with the same
    arguments does not take a GPU again.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        image: pulumi.Input[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:kubernetes:WarmUps", name, None, opts)
        manifests = warm_ups(plan)
        shared = [one for one in manifests if one["kind"] != "Job"]
        first = each(name, shared, pulumi.ResourceOptions(parent=self))
        for job in (one for one in manifests if one["kind"] == "Job"):
            own = f"{plan.mirror_namespace}-{job['metadata']['name']}"
            job_once(own, with_image(job, plan.ray_cluster.image, image), self, first)
        self.register_outputs({})
