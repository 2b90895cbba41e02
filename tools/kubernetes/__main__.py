"""Runs the tests' control plane, or a whole cluster, by hand: `python -m tools.kubernetes COMMAND`.

build      build what is missing; where nodes can run, their images too
start      run a control plane in the background under `.modelfleet/kubernetes`, and print its kubeconfig
stop       end it
status     list its processes
node       run a cluster with real nodes until Ctrl-C (root; --nodes 2, --cpus 16)
packages   print the Debian packages that nodes need and this machine lacks
crds       pack KubeRay's CRDs again for infra/kubernetes, or with --balancer those of the AWS Load Balancer Controller
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
from tools.kubernetes.cluster import Cluster
from tools.kubernetes.control_plane import ControlPlane, crd_manifests
from tools.kubernetes.node import images, machine, serving_image
from tools.progress import Step, say

FOLDER = Path(".modelfleet") / "kubernetes"
STATE = FOLDER / "processes.json"


def main() -> int:
    """Run one command; return 2 if the environment lacks something."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tools.kubernetes", description=__doc__, formatter_class=plain)
    parser.add_argument("command", choices=["build", "start", "stop", "status", "node", "packages", "crds"])
    parser.add_argument("--operator", action="store_true", help="start: add the KubeRay operator and its CRDs")
    parser.add_argument("--nodes", type=int, choices=[1, 2, 3], default=1, help="node: how many")
    parser.add_argument("--cpus", type=int, help="node: CPUs that each claims, with 4 GiB of memory for each")
    parser.add_argument("--balancer", type=Path, help="crds: a checkout of the AWS Load Balancer Controller")
    arguments = parser.parse_args()
    try:
        return _run(arguments)
    except ModelfleetError as error:
        print(f"tools.kubernetes: {error}", file=sys.stderr)
        return error.exit_code


def _run(arguments: argparse.Namespace) -> int:
    command = arguments.command
    if command == "build":
        _build()
    elif command == "crds":
        print(crds.write_balancer(arguments.balancer) if arguments.balancer else crds.write())
    elif command == "start":
        _start(arguments.operator)
    elif command == "node":
        _nodes(arguments.nodes, arguments.cpus)
    elif command == "packages":
        print(" ".join(machine.missing_packages()))
    elif command == "stop":
        _stop()
    else:
        return _status()
    return 0


def _build() -> None:
    binaries.build_all()
    print("\n".join(str(binary.path) for binary in binaries.BINARIES.values()))
    if not machine.lacking():
        print(images.archive(serving_image.fleet()).path)


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


def _nodes(count: int, cpus: int | None) -> None:
    machine.require()
    binaries.build_all()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Step(f"a cluster with {count} {'node' if count == 1 else 'nodes'}"):
        cluster = Cluster(count, cpus=cpus, recipes=serving_image.fleet()).__enter__()
    try:
        print(f"export KUBECONFIG={cluster.plane.kubeconfig}", flush=True)
        for node in cluster.nodes.values():
            say(f"a command inside {node.settings.name}: {' '.join(node.command('ctr', 'version'))}")
        say("Ctrl-C ends it.")
        signal.pause()
    except KeyboardInterrupt:
        say("stopping")
    finally:
        cluster.stop()


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
