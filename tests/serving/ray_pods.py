"""Ray's pods without Kubernetes: each with an address, processes, /tmp and /etc/hosts of its own, on one bridge.

What runs in them is what KubeRay 1.6.2 would start for the stack's RayService. Killing a pod's first process kills
all of its processes at once, as the end of a container does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.waiting import wait_until
from tools.kubernetes.processes import end_with_parent

BRIDGE_ADDRESS = "10.213.0.1"
#: `unshare` gives the pod its namespaces; the shell sees to its files and waits for its cable.
_INSIDE = """
mount --bind "$1/tmp" /tmp && mount --bind "$1/hosts" /etc/hosts && ip link set lo up || exit 1
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip address add "$2/24" dev eth0 && ip link set eth0 up || exit 1
shift 2
exec "$@"
"""


class Pods:
    """`with Pods(folder) as pods:`; `folder` is not under /tmp. Everything ends with this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._beside: list[subprocess.Popen[bytes]] = []
        self._made = 0

    def __enter__(self) -> Pods:
        self._bridge = self._spawn("bridge", ["unshare", "--net", "sleep", "infinity"], os.environ)
        wait_until(lambda: _name(self._bridge.pid) == "sleep", what="a network namespace")
        for command in (
            "link set lo up",
            "link add pods type bridge",
            f"address add {BRIDGE_ADDRESS}/24 dev pods",
            "link set pods up",
        ):
            subprocess.run([*self.beside("ip"), *command.split()], check=True)
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self._running):
            self.kill(name)
        for process in (*self._beside, self._bridge):
            process.kill()
            process.wait(30)

    def beside(self, *command: str) -> list[str]:
        """The command line that runs `command` on the bridge, from where every pod can be reached."""
        return ["nsenter", f"--net=/proc/{self._bridge.pid}/ns/net", "--", *command]

    def inside(self, name: str, *command: str) -> list[str]:
        """The command line that runs `command` in a pod that runs."""
        first = _first(self._running[name].pid)
        return ["nsenter", f"--target={first}", "--net", "--mount", "--pid", "--", *command]

    def run_beside(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Run `command` on the bridge, until the end at most; its output goes to `<name>.log`."""
        self._beside.append(process := self._spawn(name, self.beside(*command), env))
        return process

    def start(self, name: str, address: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Run `command` in a new pod; its output goes to `<name>.log`."""
        home = self._folder / name
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        (home / "hosts").touch()
        namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        inside = ["sh", "-c", _INSIDE, "sh", str(home), address, *command]
        pod = self._spawn(name, [*namespaces, *inside], env)
        first = wait_until(lambda: _first(pod.pid), what=f"{name} has a process")
        self._made += 1
        cable = f"link add pod{self._made} type veth peer name eth0 netns {first}"
        subprocess.run([*self.beside("ip"), *cable.split()], check=True)
        subprocess.run([*self.beside("ip"), *f"link set pod{self._made} master pods up".split()], check=True)
        self._running[name] = pod

    def has_ended(self, name: str) -> bool:
        """Whether the pod's first process has ended by itself."""
        return name in self._running and self._running[name].poll() is not None

    def resolve(self, name: str, pods: Sequence[str], address: str) -> None:
        """What these pods' name service answers for `name` from now on."""
        for pod in pods:
            home = self._folder / pod
            home.mkdir(parents=True, exist_ok=True)
            (home / "hosts").write_text(f"127.0.0.1 localhost\n{address} {name}\n")

    def kill(self, name: str) -> None:
        """End all processes of a pod at once."""
        pod = self._running.pop(name)
        if first := _first(pod.pid):
            os.kill(first, signal.SIGKILL)
        pod.kill()
        pod.wait(30)

    def _spawn(self, name: str, command: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                preexec_fn=end_with_parent,  # noqa: PLW1509  one system call, no lock
            )


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _first(pid: int) -> int | None:
    """The first process in the pod that `unshare` (process `pid`) began."""
    if not psutil.pid_exists(pid):
        print(f"pod {pid} has ended", file=sys.stderr)
        return None
    children = psutil.Process(pid).children()
    return children[0].pid if children else None
