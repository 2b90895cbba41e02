"""`RayFleet`: the scripts that pods mount, and the RayService with the cluster and all applications."""

from __future__ import annotations

import pulumi

from modelfleet.infra.kubernetes.manifests.everything import ray
from modelfleet.infra.kubernetes.manifests.ray import STORE_ADDRESS
from modelfleet.infra.kubernetes.objects import SKIP_AWAIT, resource, with_image
from modelfleet.infra.kubernetes.release import Release
from modelfleet.infra.planning.plan import Plan

#: Seconds until the first models answer, beside the copies of their weights: nodes are bought, images pulled, weights
#: loaded.
READY_S = 90 * 60
#: Seconds until all is deleted: pods finish their requests first.
GONE_S = 30 * 60
ANNOTATIONS = {
    "pulumi.com/waitFor": "condition=Ready",
    # KubeRay writes the whole object back when it adds its finalizer, so server-side apply takes it for the owner of
    # the worker groups. Without this no pool could ever change again.
    "pulumi.com/patchForce": "true",
}

#: With `rollout: replace` a change of these deletes the RayService and makes a new one. What KubeRay changes in place
#: (replicas, tolerations, a group appended at the end) is not among them.
REPLACES = [
    "spec.rayClusterConfig.rayVersion",
    "spec.rayClusterConfig.authOptions",
    "spec.rayClusterConfig.gcsFaultToleranceOptions",
    "spec.rayClusterConfig.headGroupSpec.template.spec.containers",
    "spec.rayClusterConfig.headGroupSpec.template.spec.initContainers",
    "spec.rayClusterConfig.headGroupSpec.template.spec.volumes",
    "spec.rayClusterConfig.workerGroupSpecs[*].groupName",
    "spec.rayClusterConfig.workerGroupSpecs[*].resources",
    "spec.rayClusterConfig.workerGroupSpecs[*].template.spec.containers",
    "spec.rayClusterConfig.workerGroupSpecs[*].template.spec.nodeSelector",
]


def timeouts(plan: Plan) -> pulumi.CustomTimeouts:
    """How long a run waits for the RayService; models wait for the mirror Jobs, so it waits for these too."""
    ready = f"{(READY_S + plan.copies.wait_s) // 60}m"
    return pulumi.CustomTimeouts(create=ready, update=ready, delete=f"{GONE_S // 60}m")


class RayFleet(pulumi.ComponentResource):
    """Children: ConfigMap `ray-scripts`, Service `fleet-serve`, Release, RayService `fleet`."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        *,
        store_address: pulumi.Input[str] = STORE_ADDRESS,
        image: pulumi.Input[str] | None = None,
        kubeconfig: pulumi.Input[str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("modelfleet:kubernetes:RayFleet", name, None, opts)
        programs, front, manifest = ray(plan, store_address)
        files = resource(f"{name}-scripts", programs, pulumi.ResourceOptions(parent=self))
        front["metadata"]["annotations"] = dict(SKIP_AWAIT)  # nothing is behind it before the RayService is there
        # KubeRay writes its specification from then on.
        service = resource(f"{name}-serve", front, pulumi.ResourceOptions(parent=self, ignore_changes=["spec"]))
        manifest["metadata"]["annotations"] |= ANNOTATIONS
        replace = plan.ray_cluster.rollout == "replace"
        settings = plan.config.kubernetes
        rolled = Release(
            f"{name}-release",
            plan,
            kubeconfig=settings.kubeconfig if kubeconfig is None else kubeconfig,
            context=settings.context if kubeconfig is None else None,
            # Of its parents' providers it needs none; their dependencies it has.
            opts=pulumi.ResourceOptions(parent=self, depends_on=[files, service], custom_timeouts=timeouts(plan)),
        )
        self.service = resource(
            f"{name}-service",
            with_image(manifest, plan.ray_cluster.image, image),
            pulumi.ResourceOptions(
                parent=self,
                depends_on=[files, service, rolled],
                custom_timeouts=timeouts(plan),
                replace_on_changes=REPLACES if replace else None,
                delete_before_replace=True,  # the name is fixed
            ),
        )
        self.register_outputs({})
