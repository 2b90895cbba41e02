"""`python -m tools.kubernetes build|start|stop|status|crds`: runs the test control plane by hand.

`start` runs it in the background under `.modelfleet/kubernetes` and prints its kubeconfig.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from modelfleet.serving.config.errors import ModelfleetError, SetupError
from tools.kubernetes import binaries, crds
from tools.kubernetes.control_plane import ControlPlane, crd_manifests

FOLDER = Path(".modelfleet") / "kubernetes"
STATE = FOLDER / "processes.json"


def main() -> int:
    """Run one command; return 2 if the environment lacks something."""
    parser = argparse.ArgumentParser(prog="python -m tools.kubernetes", description=__doc__)
    parser.add_argument("command", choices=["build", "start", "stop", "status", "crds"])
    parser.add_argument("--operator", action="store_true", help="start: add the KubeRay operator and its CRDs")
    arguments = parser.parse_args()
    try:
        return _run(arguments.command, arguments.operator)
    except ModelfleetError as error:
        print(f"tools.kubernetes: {error}", file=sys.stderr)
        return error.exit_code


def _run(command: str, operator: bool) -> int:
    if command == "build":
        binaries.build_all()
        print("\n".join(str(binary.path) for binary in binaries.BINARIES.values()))
    elif command == "crds":
        print(crds.write())
    elif command == "start":
        _start(operator)
    elif command == "stop":
        _stop()
    else:
        return _status()
    return 0


def _start(operator: bool) -> None:
    if any(_alive(pid) for pid in _pids().values()):
        raise SetupError("a control plane is already running; to stop it, run: python -m tools.kubernetes stop")
    binaries.build_all()
    plane = ControlPlane(FOLDER.resolve(), outlive=True)
    try:
        plane.start()
        if operator:
            for manifest in crd_manifests():
                plane.api.apply(manifest, manager="modelfleet-tools", force=True)
            plane.start_operator()
    except BaseException:
        plane.stop()
        raise
    STATE.write_text(json.dumps(plane.pids()))
    print(f"export KUBECONFIG={plane.kubeconfig}")


def _stop() -> None:
    for pid in reversed(_pids().values()):
        if _alive(pid):
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 15
    while any(_alive(pid) for pid in _pids().values()) and time.monotonic() < end:
        time.sleep(0.2)
    for pid in _pids().values():
        if _alive(pid):
            os.kill(pid, signal.SIGKILL)
    STATE.unlink(missing_ok=True)


def _status() -> int:
    alive = {name: pid for name, pid in _pids().items() if _alive(pid)}
    for name, pid in alive.items():
        print(f"{name}\t{pid}")
    if not alive:
        print("no control plane is running; to start one, run: python -m tools.kubernetes start", file=sys.stderr)
    return 0 if alive else 2


def _pids() -> dict[str, int]:
    found: dict[str, int] = json.loads(STATE.read_text()) if STATE.exists() else {}
    return found


def _alive(pid: int) -> bool:
    """Whether `pid` is still our process: another one may have reused the number."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return False
    return command in {str(binary.path) for binary in binaries.BINARIES.values()}


if __name__ == "__main__":
    sys.exit(main())
