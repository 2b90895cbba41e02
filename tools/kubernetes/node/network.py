"""The cluster's own network: a namespace with a bridge, a cable from it to each node, and ports that lead in from here.

Nothing of it can be reached from the machine but by `forward`, and nothing of the machine from it: it has no way out.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO

from modelfleet.serving.config.errors import SetupError
from tools.kubernetes.node.settings import GATEWAY, NodeSettings
from tools.kubernetes.processes import Running, end_with_parent
from tools.paths import ROOT

BRIDGE = "nodes"


class Network(Running):
    """`with Network(folder) as network:`; its processes end with the one that started it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._holder: subprocess.Popen[bytes] | None = None
        self._forwards: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Make the namespace and its bridge."""
        # `unshare` becomes the program that it is told to run, and that ends when its input does.
        self._holder = self._spawn(["unshare", "--net", "cat"], "network", stdin=subprocess.PIPE)
        while Path(f"/proc/{self._holder.pid}/comm").read_text().strip() != "cat":
            if self._holder.poll() is not None:
                raise SetupError(f"no network namespace: {(self._folder / 'network.log').read_text().strip()}")
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", BRIDGE, "type", "bridge")
        self.ip("address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        self.ip("link", "set", BRIDGE, "up")
        subprocess.run(self.command("sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1"), check=True)

    @property
    def pid(self) -> int:
        """A process in the namespace."""
        assert self._holder is not None
        return self._holder.pid

    def command(self, *command: str) -> list[str]:
        """The command line that runs `command` in the namespace."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *command]

    def ip(self, *arguments: str) -> None:
        """Run `ip` in the namespace; raises `SetupError` with what it says."""
        done = subprocess.run(self.command("ip", *arguments), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SetupError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def connect(self, node: NodeSettings, pid: int) -> None:
        """Lay a cable to the namespace of process `pid`, and the way to the node's pods."""
        self.ip("link", "add", node.name, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self.ip("link", "set", node.name, "master", BRIDGE, "up")
        self.ip("route", "add", node.pods, "via", node.address)

    def disconnect(self, node: NodeSettings) -> None:
        """Take the way to the node's pods back; the cable ends with its namespace."""
        self.ip("route", "del", node.pods)

    def forward(self, port: int, host: str, host_port: int) -> None:
        """Lead the machine's loopback port to an address of the network, until `stop`."""
        command = [sys.executable, "-m", "tools.kubernetes.node.forward"]
        arguments = [str(port), str(self.pid), host, str(host_port)]
        process = self._spawn([*command, *arguments], f"forward-{port}", stdout=subprocess.PIPE)
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            log = (self._folder / f"forward-{port}.log").read_text().strip()
            raise SetupError(f"port {port} does not lead into the cluster's network: {log}")
        self._forwards.append(process)

    def stop(self) -> None:
        """End the namespace and all ports that lead into it."""
        for process in [*self._forwards, *([self._holder] if self._holder else [])]:
            process.kill()
            process.wait(timeout=10)
        self._forwards, self._holder = [], None

    def _spawn(
        self, command: list[str], name: str, *, stdin: int = subprocess.DEVNULL, stdout: int | IO[bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=stdin,
                stdout=stdout or log,
                stderr=log,
                preexec_fn=end_with_parent,  # noqa: PLW1509  one system call, no lock
                start_new_session=True,
            )
