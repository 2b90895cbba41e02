"""A cluster with one real node that outlives the command that starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from modelfleet.serving.config.errors import SetupError
from tools.kubernetes.node import machine
from tools.paths import ROOT
from tools.progress import Step

#: More CPUs than a laptop has: they only steer placement. Each comes with 4 GiB.
CPUS = 12
#: With images to build, which a machine does once.
START_SECONDS = 1200.0
#: Thousands of small files of images go with it.
STOP_SECONDS = 300.0


class OwnCluster:
    """`python -m tools.kubernetes node` in the background, with its log and its process number in a folder."""

    def __init__(self, folder: Path) -> None:
        self._log, self._state = folder / "log", folder / "process.json"

    @property
    def kubeconfig(self) -> Path | None:
        """The running cluster's, None if none runs."""
        return self._said() if self._process() else None

    def start(self) -> Path:
        """Start it unless it runs; returns its kubeconfig. Raises `SetupError` with all that the machine lacks."""
        if running := self.kubeconfig:
            return running
        machine.require()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tools.kubernetes", "node", "--cpus", str(CPUS)]
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._state.write_text(json.dumps({"pid": process.pid, "started": psutil.Process(process.pid).create_time()}))
        with Step("a cluster on this machine, because kubectl knows none that answers"):
            end = time.monotonic() + START_SECONDS
            while not (found := self._said()):
                if process.poll() is not None or time.monotonic() > end:
                    raise SetupError(f"the cluster did not start: {self._log.read_text()[-800:].strip()}")
                time.sleep(0.2)
        return found

    def stop(self) -> None:
        """End it, if it runs."""
        if process := self._process():
            os.kill(process.pid, signal.SIGTERM)
            with Step("the cluster on this machine ends"):
                try:
                    process.wait(STOP_SECONDS)
                except psutil.TimeoutExpired as error:
                    raise SetupError(f"process {process.pid} has not ended; its log is {self._log}") from error
        self._state.unlink(missing_ok=True)

    def _process(self) -> psutil.Process | None:
        """The running process: another one may have got its number since."""
        if not self._state.exists():
            return None
        state = json.loads(self._state.read_text())
        try:
            process = psutil.Process(state["pid"])
        except psutil.NoSuchProcess:
            return None
        alive = process.create_time() == state["started"] and process.status() != psutil.STATUS_ZOMBIE
        return process if alive else None

    def _said(self) -> Path | None:
        """The path in the line `export KUBECONFIG=…` of its log."""
        prefix = "export KUBECONFIG="
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return next((Path(line.removeprefix(prefix)) for line in lines if line.startswith(prefix)), None)
