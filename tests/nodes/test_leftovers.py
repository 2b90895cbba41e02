"""A cluster whose owner is killed leaves nothing on the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until
from tools.kubernetes.cluster import Cluster
from tools.kubernetes.node.machine import CGROUPS

pytestmark = pytest.mark.slow

STARTS = """
from tools.kubernetes.cluster import Cluster
import signal
cluster = Cluster(1)
print(cluster.folder, flush=True)
cluster.start()
print("up", flush=True)
signal.pause()
"""


def commands_with(text: str) -> list[str]:
    """The command lines of the machine's processes that have this in them."""
    running = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return [command for command in running if text in command]


def sysctls() -> dict[str, str]:
    """What a kubelet writes unless it finds what it wants."""
    names = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
    return {name: Path("/proc/sys", name).read_text() for name in names}


def seen_from_the_machine() -> str:
    """Mounts, links, addresses, routes and packet filters of the machine itself."""
    filters = ["nft", "list", "ruleset"]  # kube-proxy's and the enforcer's
    asked = (["ip", "-o", "address"], ["ip", "-o", "link"], ["ip", "route", "show", "table", "all"], filters)
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in asked]
    return "\n".join([*said, Path("/proc/self/mounts").read_text()])


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("moment", ["while it starts", "when it is up"])
def test_a_killed_owner_leaves_nothing(moment: str) -> None:
    before = sysctls()
    owner = subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    if moment == "when it is up":
        assert owner.stdout.readline() == "up\n"
    else:
        wait_until(lambda: list(folder.glob("node-1-*/containerd.pid")), what="containerd starts", seconds=120)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    name = f"modelfleet-{owner.pid}-"
    wait_until(lambda: not list(CGROUPS.glob(f"*/{name}*")), what="its cgroups have gone", seconds=60)
    wait_until(lambda: not folder.exists(), what="its folder has gone", seconds=30)
    wait_until(lambda: not commands_with(str(folder)), what=f"no process of {folder}", seconds=30)
    assert sysctls() == before
    traces = ("172.30.0.", "10.244.", "KUBE-", str(folder))
    assert [line for line in seen_from_the_machine().splitlines() if any(trace in line for trace in traces)] == []


def test_two_clusters_stand_side_by_side(cluster: Cluster) -> None:
    with Cluster(1) as other:
        names = {node["metadata"]["name"] for node in other.api.list("v1", "Node")}
        assert names == {"node-1"}
        assert len(cluster.api.list("v1", "Node")) == 2
