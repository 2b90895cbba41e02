"""The control plane's programs: built once from pinned Go modules (`modules/*/go.sum`), kept in the user's cache."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.config.errors import SetupError

MODULES = Path(__file__).parent / "modules"

#: Kubernetes takes its version from the linker; without it the API server calls itself v0.0.0.
KUBERNETES_VERSION = "1.36.3"
KUBERAY_VERSION = "1.6.2"
_VERSION = "k8s.io/component-base/version"
_KUBERNETES_FLAGS = f"-X {_VERSION}.gitVersion=v{KUBERNETES_VERSION} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=36"


@dataclass(frozen=True)
class Binary:
    """One program: its name, version, the folder under `modules/` that pins it and the Go package to build."""

    name: str
    version: str
    module: str
    package: str
    ldflags: str = ""

    @property
    def path(self) -> Path:
        """Where the built program is."""
        return cache_folder() / f"{self.name}-{self.version}" / self.name


BINARIES = {
    binary.name: binary
    for binary in (
        Binary("etcd", "3.6.13", "etcd", "go.etcd.io/etcd/server/v3"),
        Binary(
            "kube-apiserver",
            KUBERNETES_VERSION,
            "kubernetes",
            "k8s.io/kubernetes/cmd/kube-apiserver",
            _KUBERNETES_FLAGS,
        ),
        Binary(
            "kube-controller-manager",
            KUBERNETES_VERSION,
            "kubernetes",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            _KUBERNETES_FLAGS,
        ),
        Binary(
            "kube-scheduler",
            KUBERNETES_VERSION,
            "kubernetes",
            "k8s.io/kubernetes/cmd/kube-scheduler",
            _KUBERNETES_FLAGS,
        ),
        Binary("kwok", "0.7.0", "kwok", "sigs.k8s.io/kwok/cmd/kwok", "-X sigs.k8s.io/kwok/pkg/consts.Version=v0.7.0"),
        Binary("kuberay-operator", KUBERAY_VERSION, "kuberay", "github.com/ray-project/kuberay/ray-operator"),
    )
}


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/modelfleet/tools`, where every built tool lives."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "modelfleet" / "tools"


def missing(names: Iterable[str] = tuple(BINARIES)) -> list[str]:
    """Those of `names` that are not built yet."""
    return [name for name in names if not BINARIES[name].path.is_file()]


def require(names: Iterable[str] = tuple(BINARIES)) -> None:
    """Raise `SetupError` when a program is not built."""
    if absent := missing(names):
        raise SetupError(
            f"{', '.join(absent)} not built; run: python -m tools.kubernetes build (needs Go, about 8 minutes once)"
        )


def build(names: Iterable[str] = tuple(BINARIES)) -> None:
    """Build what is missing, one at a time; raises `SetupError` when Go is missing or a build fails."""
    for name in missing(names):
        binary = BINARIES[name]
        binary.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(binary.path.parent / ".lock"):
            if not binary.path.is_file():
                print(f"building {name} {binary.version} from its Go module (minutes, once)", file=sys.stderr)
                _go_build(binary)


def module_folder(module: str, path: str) -> Path:
    """Where Go keeps the sources of the module `path` that `modules/<module>` pins; downloads them when needed."""
    run = subprocess.run(
        [go(), "list", "-m", "-f", "{{.Dir}}", path],
        cwd=MODULES / module,
        env=_environment(),
        capture_output=True,
        text=True,
    )
    folder = run.stdout.strip()
    if run.returncode or not folder:
        _run([go(), "mod", "download", path], MODULES / module)
        return module_folder(module, path)
    return Path(folder)


def go() -> str:
    """The Go tool; raises `SetupError` when there is none."""
    found = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if found is None:
        raise SetupError("go is not installed, and it builds the test control plane; install Go 1.26 or newer")
    return found


def _go_build(binary: Binary) -> None:
    part = binary.path.with_name(f".{binary.name}.part")
    flags = f"-s -w {binary.ldflags}".strip()
    _run([go(), "build", "-trimpath", "-ldflags", flags, "-o", str(part), binary.package], MODULES / binary.module)
    part.replace(binary.path)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-5:])
        raise SetupError(f"{' '.join(command[:2])} failed in {folder.name}: {last}")


def _environment() -> dict[str, str]:
    # readonly: the pinned go.sum decides, a changed dependency fails instead of being taken.
    return {**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two runs at once build a program once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
