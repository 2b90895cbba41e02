"""Imports once what every `pulumi` run imports, so that its bytecode is there."""

from __future__ import annotations

import importlib

#: Module → what to touch in it: pulumi_aws loads each service on first use.
USED = {
    "pulumi_aws": (
        "autoscaling.Tag",
        "cloudwatch.LogGroup",
        "ec2.Vpc",
        "eks.Cluster",
        "iam.Role",
        "kms.Key",
        "s3.Bucket",
        "servicequotas.get_service_quota",
        "vpc.SecurityGroupIngressRule",
    ),
    "pulumi_kubernetes": ("apiextensions.CustomResource", "apps.v1.Deployment", "batch.v1.Job", "core.v1.Namespace"),
    "pulumi_policy": (),
    "boto3": (),
    "moto.server": (),
}


def main() -> None:
    """Imports what is installed; the cluster's environment has less of it."""
    for module, names in USED.items():
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError:
            continue  # an environment for the cluster side only
        for name in names:
            found = loaded
            for part in name.split("."):
                found = getattr(found, part)


if __name__ == "__main__":
    main()
