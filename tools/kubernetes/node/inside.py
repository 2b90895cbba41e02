"""Process 1 of a node: `python -m tools.kubernetes.node.inside SETTINGS`, in mount, network and PID namespaces.

It makes the node's mounts and addresses, starts containerd, kubelet and kube-proxy, and starts again what ends, as a
service manager does. Only the standard library: it runs before anything else of the node does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tools.kubernetes.node import files
from tools.kubernetes.node.settings import GATEWAY, PODS, QUEUE, NodeSettings

#: Where the machine may lack a folder that a program insists on: the node sees a layer of its own over each.
LAYERS = ("/var/lib", "/var/log")
#: Default places of state: each becomes a folder of the node's own.
PLACES = ("/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/var/log/pods", "/var/log/containers")
#: The whole machine's. The kubelet writes them unless it reads what it wants, so it is shown that.
SYSCTLS = {"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"}
MIB_PER_CPU = 4096
RESTART_SECONDS = 1.0


def main(settings_path: str) -> None:
    """Run the node until SIGTERM or the end of the process that made the namespaces."""
    settings = NodeSettings.read(Path(settings_path))
    signal.signal(signal.SIGTERM, _end)
    _mounts(settings)
    _addresses(settings)
    services = _Services(settings)
    services.start("containerd", ["containerd", "--config", _file(settings, "containerd.toml")])
    _wait("containerd", lambda: _succeeds("ctr", "version"))
    for archive in settings.images:
        _run("ctr", "--namespace", "k8s.io", "images", "import", archive)
    services.start("kubelet", _kubelet(settings))
    services.start("kube-proxy", [_program(settings, "kube-proxy"), f"--config={_file(settings, 'proxy.json')}"])
    _policies()
    (Path(settings.folder) / "started").touch()
    services.keep()


class _Services:
    """The node's programs, each started again when it ends."""

    def __init__(self, settings: NodeSettings) -> None:
        self._folder = Path(settings.folder)
        self._commands: dict[str, list[str]] = {}
        self._pids: dict[int, str] = {}

    def start(self, name: str, command: list[str]) -> None:
        self._commands[name] = command
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        self._pids[process.pid] = name
        (self._folder / f"{name}.pid").write_text(str(process.pid))

    def keep(self) -> None:
        """Reap for ever: also what containers left behind, for this is process 1."""
        while True:
            pid, _ = os.wait()
            if name := self._pids.pop(pid, None):
                time.sleep(RESTART_SECONDS)
                self.start(name, self._commands[name])


def _mounts(settings: NodeSettings) -> None:
    folder = Path(settings.folder)
    socket.sethostname(settings.name)
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "tmpfs", "tmpfs", "/run")
    for layer in LAYERS:
        upper, work = Path("/run/layers/upper" + layer), Path("/run/layers/work" + layer)
        for made in (upper, work):
            made.mkdir(parents=True)
        _run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={layer},upperdir={upper},workdir={work}", layer)
    for place in PLACES:
        own = folder / place.lstrip("/")
        own.mkdir(parents=True, exist_ok=True)
        Path(place).mkdir(exist_ok=True)
        _bind(own, Path(place))
    _run("mount", "--make-rshared", "/var/lib/kubelet")
    Path(files.NETWORKS).mkdir(parents=True)
    Path(files.NETWORKS, "10-pods.conflist").write_text(files.network(settings))
    for name, value in SYSCTLS.items():
        _shown(folder / name.replace("/", "-"), value, Path("/proc/sys") / name)
    _shown(folder / "resolv.conf", "", Path("/etc/resolv.conf").resolve())  # no name server is reachable
    if settings.cpus:
        _claim(folder, settings.cpus)
    default = json.loads(subprocess.check_output(["ctr", "oci", "spec"]))
    for name, text in {
        "kubelet.kubeconfig": files.kubeconfig(settings, settings.token),
        "proxy.kubeconfig": files.kubeconfig(settings, settings.proxy_token),
        "kubelet.json": files.kubelet(settings),
        "proxy.json": files.kube_proxy(settings),
        "containerd.toml": files.containerd(settings),
        "base.json": files.base_runtime_spec(settings, default),
    }.items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text)


def _claim(folder: Path, cpus: int) -> None:
    """Show the kubelet more CPUs than there are: NUMA nodes that share the machine's own, with memory for each."""
    own = sorted(os.sched_getaffinity(0))
    for node in range(-(-cpus // len(own))):
        for cpu in own:
            topology = folder / f"numa/node{node}/cpu{cpu}/topology"
            topology.mkdir(parents=True, exist_ok=True)
            (topology / "core_id").write_text(f"{cpu}\n")
            (topology / "physical_package_id").write_text("0\n")
        kib = MIB_PER_CPU * len(own) * 1024  # libnuma wants both lines
        (folder / f"numa/node{node}/meminfo").write_text(
            f"Node {node} MemTotal: {kib} kB\nNode {node} MemFree: {kib} kB\n"
        )
    _bind(folder / "numa", Path("/sys/devices/system/node"))
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = f"MemTotal: {cpus * MIB_PER_CPU * 1024} kB"
    _shown(folder / "meminfo", "\n".join([total, *lines[1:]]) + "\n", Path("/proc/meminfo"))


def _addresses(settings: NodeSettings) -> None:
    """The node's end of the cable, which the network puts here."""
    _run("ip", "link", "set", "lo", "up")
    _wait("the cable eth0", lambda: _succeeds("ip", "link", "show", "eth0"))
    _run("ip", "address", "add", f"{settings.address}/24", "dev", "eth0")
    _run("ip", "link", "set", "eth0", "up")
    _run("ip", "route", "add", "default", "via", GATEWAY)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _policies() -> None:
    """Each new connection of a pod waits for the enforcer, but the kubelet's probes do not.

    The enforcer's own rules need the kernel's CONFIG_NFT_QUEUE, which not every kernel has; these do the same.
    """
    rule = ["iptables", "--table", "mangle", "--append", "POSTROUTING"]
    _run(*rule, "--match", "owner", "--uid-owner", "0", "--jump", "RETURN")
    _run(*rule, "--match", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "--jump", "RETURN")
    for side in ("--source", "--destination"):
        _run(*rule, side, PODS, "--jump", "NFQUEUE", "--queue-num", str(QUEUE))


def _kubelet(settings: NodeSettings) -> list[str]:
    return [
        _program(settings, "kubelet"),
        f"--config={_file(settings, 'kubelet.json')}",
        f"--kubeconfig={_file(settings, 'kubelet.kubeconfig')}",
        f"--node-ip={settings.address}",
        f"--hostname-override={settings.name}",
        f"--cert-dir={_file(settings, 'kubelet-certificates')}",
    ]


def _program(settings: NodeSettings, name: str) -> str:
    return dict(settings.programs)[name]


def _file(settings: NodeSettings, name: str) -> str:
    return f"{settings.folder}/{name}"


def _shown(own: Path, text: str, place: Path) -> None:
    own.write_text(text)
    _bind(own, place)


def _bind(source: Path, target: Path) -> None:
    _run("mount", "--bind", str(source), str(target))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _wait(what: str, done: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not done():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not there after 120 s")
        time.sleep(0.1)


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main(sys.argv[1])
