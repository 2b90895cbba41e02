"""The control plane's programs, built once from pinned Go modules (`modules/*/go.sum`) into the user's cache."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modelfleet.infra.catalog.images import images
from modelfleet.infra.kubernetes.versions import KUBERAY
from modelfleet.serving.config.errors import SetupError
from tools.go_toolchain import go_command
from tools.gobuild import GoCommand, GoModule, build
from tools.paths import tools_cache

MODULES = Path(__file__).parent / "modules"
NEEDED_FOR = "the Kubernetes control plane of the tests"

KUBERNETES_VERSION = "1.36.3"
KUBERAY_MODULE = "github.com/ray-project/kuberay/ray-operator"
#: As its image's tag says; the module of 3.15.1 is v0.315.1.
PROMETHEUS_VERSION = images()["prometheus"].tag.removeprefix("v")

#: Kubernetes takes its version from the linker; without it the API server calls itself v0.0.0.
_VERSION = "k8s.io/component-base/version"
_KUBERNETES = f"-X {_VERSION}.gitVersion=v{KUBERNETES_VERSION} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=36"
_PROMETHEUS = f"-X github.com/prometheus/common/version.Version={PROMETHEUS_VERSION}"
#: Of all that can find targets, what asks Kubernetes: without the clouds' clients a third of its compile time.
_FINDS_PODS = "remove_all_sd,enable_kubernetes_sd"
_KWOK = "-X sigs.k8s.io/kwok/pkg/consts.Version=v0.7.0"


def _module(name: str, folder: str, minutes: str, *commands: tuple[str, str, str], tags: str = "") -> GoModule:
    # -s -w: no debug tables, which saves a third of the disk and of the linker's time.
    made = [GoCommand(command, package, f"-s -w {flags}".strip(), tags) for command, package, flags in commands]
    return GoModule(name, MODULES / folder, made, minutes=minutes, needed_for=NEEDED_FOR, inline=False)


GO_MODULES = (
    _module("etcd-3.6.13", "etcd", "about a minute", ("etcd", "go.etcd.io/etcd/server/v3", "")),
    _module(
        f"kubernetes-{KUBERNETES_VERSION}",
        "kubernetes",
        "about 5 minutes",
        ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", _KUBERNETES),
        ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", _KUBERNETES),
        ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", _KUBERNETES),
    ),
    _module(
        f"kubernetes-node-{KUBERNETES_VERSION}",
        "kubernetes",
        "about a minute after the control plane",
        ("kubelet", "k8s.io/kubernetes/cmd/kubelet", _KUBERNETES),
        ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", _KUBERNETES),
    ),
    # One module, because both need Kubernetes' client, which is most of their compile time.
    _module(
        "node-coredns-1.14.7-kube-network-policies-0.8.0",
        "node",
        "about 3 minutes",
        ("coredns", "./coredns", ""),
        ("kube-network-policies", "sigs.k8s.io/kube-network-policies/cmd", ""),
    ),
    _module("kwok-0.7.0", "kwok", "about a minute", ("kwok", "sigs.k8s.io/kwok/cmd/kwok", _KWOK)),
    _module(f"kuberay-operator-{KUBERAY}", "kuberay", "about a minute", ("kuberay-operator", KUBERAY_MODULE, "")),
    _module(
        f"prometheus-{PROMETHEUS_VERSION}",
        "prometheus",
        "about 2 minutes",
        ("prometheus", "github.com/prometheus/prometheus/cmd/prometheus", _PROMETHEUS),
        tags=_FINDS_PODS,
    ),
)


@dataclass(frozen=True)
class Binary:
    """A program and the Go module that it is built from."""

    name: str
    module: GoModule

    @property
    def path(self) -> Path:
        """Where the built program is."""
        return tools_cache() / self.module.name / self.name


BINARIES = {command.name: Binary(command.name, module) for module in GO_MODULES for command in module.commands}


def missing(names: Iterable[str] = tuple(BINARIES)) -> list[str]:
    """The programs in `names` that are not built yet."""
    return [name for name in names if not BINARIES[name].path.is_file()]


def require(names: Iterable[str] = tuple(BINARIES)) -> None:
    """Raise `SetupError` if a program is not built."""
    if absent := missing(names):
        raise SetupError(
            f"not built: {', '.join(absent)}; run: python -m tools.kubernetes build (needs Go, about 10 minutes once)"
        )


def build_all() -> None:
    """Build what is missing, one module at a time; raises `SetupError` if Go is missing or a build fails."""
    for module in GO_MODULES:
        build(module)


def kuberay_sources() -> Path:
    """Return the folder where Go keeps the operator's sources; download them if needed. Raises `SetupError`."""
    # `download` reports where the module is, fetched or not; go.sum decides what is accepted.
    done = subprocess.run(
        [go_command("the control plane"), "mod", "download", "-json", KUBERAY_MODULE],
        cwd=MODULES / "kuberay",
        check=False,
        capture_output=True,
        text=True,
    )
    try:
        return Path(json.loads(done.stdout)["Dir"])
    except (ValueError, KeyError) as error:
        raise SetupError(f"go mod download {KUBERAY_MODULE} failed: {done.stderr.strip()[-300:]}") from error
