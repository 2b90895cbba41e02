"""A real Ray of several nodes that this process owns: raylets on this machine that declare what pods would."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from modelfleet.infra.local.ray_head import get_node_with_patience
from tests.ports import free_ports

#: Ray's minimum, because nothing large is stored.
HERE = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` with a head that has no CPUs, as in the pods, and this process as its driver."""
    import ray
    from ray._private import ray_constants, services
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="mfr")  # Ray keeps sockets in it, whose paths are short
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            # Otherwise each CPU of a node gets a process, and these nodes have up to 95.
            "RAY_prestart_worker_first_driver": "0",
            "RAY_worker_niceness": "0",
            # Machines are busy: a raylet ends if its agent starts late, and a node that answers late counts as dead.
            "RAY_agent_register_timeout_ms": "300000",
            "RAY_health_check_failure_threshold": "60",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all on loopback
            "RAY_AUTH_MODE": "disabled",  # a token in the user's ~/.ray would switch it on
        }.items():
            patch.setenv(name, value)
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # read from that variable when ray was imported
        patch.setattr(services, "get_node", get_node_with_patience)
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        cluster = Cluster(shutdown_at_exit=True)
        try:
            # Another Ray on this machine has Ray's default ports, and a raylet ends with its agent.
            dashboard, agent = free_ports(2)
            ports = {"dashboard_port": dashboard, "dashboard_agent_listen_port": agent}
            cluster.add_node(num_cpus=0, include_dashboard=False, **ports, **HERE)
            ray.init(address=cluster.address, log_to_driver=False, include_dashboard=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def declared(pod: dict[str, Any]) -> dict[str, Any]:
    """What the `ray start` that KubeRay wrote into a pod declares, as arguments of `Cluster.add_node`."""
    (command,) = pod["spec"]["containers"][0]["args"]
    words = shlex.split(command.partition("ray start")[2])
    flags = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
    return {
        "num_cpus": int(flags["num-cpus"]),
        "num_gpus": int(flags.get("num-gpus", 0)),
        "memory": int(flags["memory"]),
        "resources": json.loads(flags["resources"]),
        **HERE,
    }
