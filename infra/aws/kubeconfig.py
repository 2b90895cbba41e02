"""The kubeconfig of an EKS cluster, whose token the `aws` command makes at each use."""

from __future__ import annotations

import json


def kubeconfig(*, name: str, endpoint: str, certificate_authority: str, region: str, profile: str | None) -> str:
    """A kubeconfig as JSON (which is YAML); it holds no credential, `aws eks get-token` makes one.

    With the profile of the run: keys in the environment win over AWS_PROFILE, but not over `--profile`.
    """
    chosen = ["--profile", profile] if profile else []
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "command": "aws",
            "args": ["--region", region, "eks", "get-token", "--cluster-name", name, "--output", "json", *chosen],
            "interactiveMode": "Never",
        }
    }
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": name, "cluster": {"server": endpoint, "certificate-authority-data": certificate_authority}}
            ],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
    )
