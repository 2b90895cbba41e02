"""One node from the outside: its cgroups, namespaces and the cable to the cluster's network; commands inside it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from modelfleet.serving.config.errors import SetupError
from tools.kubernetes.node.machine import CGROUPS, CONTROLLERS
from tools.kubernetes.node.network import Network
from tools.kubernetes.node.settings import NodeSettings
from tools.kubernetes.processes import end_with_parent, without_proxies
from tools.paths import ROOT

START_SECONDS = 240.0
#: Of the machine's time, in shares of which one process has 1,024.
CPU_SHARES = 8192
#: All of a machine's that a node has for itself, but users: pods' processes are root's or have the image's numbers.
NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc")


class Node:
    """Started by `start`, complete after `wait`; it ends with `stop` or with the process that started it."""

    def __init__(self, settings: NodeSettings, network: Network) -> None:
        self.settings = settings
        self._network = network
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        """Process 1 of the node, as the machine counts."""

    @property
    def folder(self) -> Path:
        """The node's state and logs."""
        return Path(self.settings.folder)

    def start(self) -> None:
        """Make the namespaces and lay the cable; the node goes on by itself."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._make_cgroups()
        path = self.folder / "settings.json"
        self.settings.write(path)
        command = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", sys.executable]
        with (self.folder / "node.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-m", "tools.kubernetes.node.inside", str(path)],
                cwd=ROOT,
                env=without_proxies(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,  # noqa: PLW1509  one system call, no lock
                start_new_session=True,
            )
        self.pid = self._first_process()
        self._network.connect(self.settings, self.pid)

    def wait(self) -> None:
        """Wait until its programs run; raises `SetupError` with the end of its log if it has ended."""
        end = time.monotonic() + START_SECONDS
        while not (self.folder / "started").exists():
            self._check()
            if time.monotonic() > end:
                raise SetupError(f"{self.settings.name}: not started after {START_SECONDS:.0f} s; see {self.folder}")
            time.sleep(0.1)

    def command(self, *command: str) -> list[str]:
        """The command line that runs `command` inside the node."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--uts", "--ipc", "--", *command]

    def log(self, name: str) -> str:
        """The log of `node`, `containerd`, `kubelet` or `kube-proxy`."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """End it as a loss of power does."""
        if self._process is None:
            return
        self._process.kill()  # `unshare --kill-child`: process 1 goes with it, and all others with that
        self._process.wait(timeout=30)
        self._process = None
        self._network.disconnect(self.settings)

    def _make_cgroups(self) -> None:
        for controller in CONTROLLERS:
            made = CGROUPS / controller / self.settings.cgroup.lstrip("/")
            made.mkdir()
            if controller == "cpu":  # as a group, all of a node's processes would get what one of the machine's gets
                (made / "cpu.shares").write_text(str(CPU_SHARES))
            if controller == "cpuset":  # it starts with none
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (made / name).write_text((made.parent / name).read_text())

    def _first_process(self) -> int:
        assert self._process is not None
        while not (children := psutil.Process(self._process.pid).children()):
            self._check()
            time.sleep(0.01)
        return int(children[0].pid)

    def _check(self) -> None:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise SetupError(f"{self.settings.name} ended with exit code {code}: {self.log('node')[-800:].strip()}")
