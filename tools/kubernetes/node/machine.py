"""What a machine must have to be a node: `lacking()` names all of it that is not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from modelfleet.serving.config.errors import SetupError

#: Debian's package of each command that a node runs. Nothing of them starts by itself.
PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "gcc": "gcc",
    "buildah": "buildah",
}
#: Where Debian's containernetworking-plugins puts the plugins of the Container Network Interface.
NETWORK_PLUGINS = Path("/usr/lib/cni")
#: The kubelet counts and limits in each of these; of cgroup v2's single hierarchy it was not tried.
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
CGROUPS = Path("/sys/fs/cgroup")


def missing_packages() -> list[str]:
    """The Debian packages of a node that are not installed."""
    absent = {PACKAGES[command] for command in PACKAGES if shutil.which(command) is None}
    if not (NETWORK_PLUGINS / "ptp").exists():
        absent.add("containernetworking-plugins")
    return sorted(absent)


def lacking(
    *, user: int | None = None, cgroups: Path = CGROUPS, filesystems: Path = Path("/proc/filesystems")
) -> list[str]:
    """What the machine lacks, each in words that say what to do; empty where nodes can run.

    `user`, `cgroups` and `filesystems` are the machine's own unless a test says otherwise.
    """
    return [
        *_lacking_root(os.geteuid() if user is None else user),
        *_lacking_commands(),
        *_lacking_cgroups(cgroups),
        *([] if _has_overlay(filesystems) else ["overlayfs in the kernel"]),
    ]


def require() -> None:
    """Raise `SetupError` with all that the machine lacks."""
    if missing := lacking():
        raise SetupError("real nodes cannot run here; this machine lacks: " + "; ".join(missing))


def _lacking_root(user: int) -> Iterable[str]:
    if user != 0:
        yield "root (namespaces, mounts and cgroups need it)"


def _lacking_commands() -> Iterable[str]:
    if absent := missing_packages():
        yield f"packages (apt-get install --no-install-recommends {' '.join(absent)})"


def _lacking_cgroups(cgroups: Path) -> Iterable[str]:
    if (cgroups / "cgroup.controllers").exists():
        yield "cgroup v1 (it has v2 alone, on which nodes were not tried)"
        return
    absent = [name for name in CONTROLLERS if not os.access(cgroups / name, os.W_OK)]
    if absent:
        yield f"a writable cgroup v1 hierarchy of {', '.join(absent)} under {cgroups}"


def _has_overlay(filesystems: Path) -> bool:
    return "overlay" in filesystems.read_text().split()
