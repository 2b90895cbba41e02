"""The cluster half: from the plan to KubeRay, a RayService, mirror Jobs and the gateway.

`manifests/` turns the plan into Kubernetes objects (pure). The modules next to it pass them to Pulumi, one
ComponentResource each. `api.py` and `preflight.py` inspect a cluster before a run.
"""
