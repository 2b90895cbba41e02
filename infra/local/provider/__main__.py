"""`pulumi-resource-modelfleet`."""

from __future__ import annotations

import os

from modelfleet.infra.image_build import IMAGE_BUILD
from modelfleet.infra.kubernetes.release import RELEASE as KUBERNETES_RELEASE
from modelfleet.infra.local.processes import raise_open_files
from modelfleet.infra.local.provider.application import APPLICATION
from modelfleet.infra.local.provider.gateway import GATEWAY
from modelfleet.infra.local.provider.monitor import MONITOR
from modelfleet.infra.local.provider.objects import CODE, WEIGHTS, end_fetching
from modelfleet.infra.local.provider.ray import RAY
from modelfleet.infra.local.provider.release import RELEASE
from modelfleet.infra.local.runtime import straight_to_loopback
from modelfleet.infra.provider import Plugin, Props, main
from modelfleet.serving.config.errors import SetupError

RESOURCES = (WEIGHTS, CODE, RAY, RELEASE, APPLICATION, GATEWAY, MONITOR, IMAGE_BUILD, KUBERNETES_RELEASE)


class LocalPlugin(Plugin[Props]):
    """The local target's resources, the build of an image in AWS, and a release of the serving code on Kubernetes."""

    name = "modelfleet"
    version = "0.1.0"

    def configure(self, settings: Props) -> Props:
        """No settings: every resource says what it needs."""
        return settings

    def explain(self, error: Exception) -> str:
        """The error's own sentence if it has one; otherwise no resource foresaw it, and its type says more."""
        return str(error) if isinstance(error, SetupError) else f"{type(error).__name__}: {error}"


def run() -> None:
    """Entry point of `pulumi-resource-modelfleet`, which the engine starts (see `plugins` in Pulumi.yaml)."""
    raise_open_files()
    os.environ.update(straight_to_loopback(os.environ))
    main(LocalPlugin({resource.token: resource for resource in RESOURCES}, {}), at_end=end_fetching)


if __name__ == "__main__":
    run()
