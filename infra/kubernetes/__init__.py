"""The cluster half: from the plan to KubeRay, a RayService, mirror Jobs and the gateway.

`manifests/` words the plan as Kubernetes objects (pure); the modules beside it hand them to Pulumi, one
ComponentResource each; `api.py` and `preflight.py` look at a cluster before a run.
"""
