"""Where a local stack keeps its sockets, Ray's folder and the gateway's files on this machine, and its environment."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path

from modelfleet.infra.gateway import Runtime
from modelfleet.serving.config.serve_options import RAY_ENVIRONMENT

#: A UNIX socket's path has at most 107 bytes, of which Ray's own part takes about 64.
MAX_LENGTH = 40
#: A path that HAProxy reads as one word, in its expressions too; a user's checkout may have blanks in its own.
PLAIN = re.compile(r"[\w./@+~:-]+")
OWN_ADDRESSES = ("localhost", "127.0.0.1")
#: More than the replicas that ever run on one machine, including those that an update is ending.
REPLICA_PORTS = 32

#: Where systems keep the authorities that they trust, as one file: Debian, Fedora, SUSE, then Alpine and macOS
#: (https://go.dev/src/crypto/x509/root_linux.go).
AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

#: Environment of vLLM and Ray in every replica on this machine. The CPU settings have no effect on a GPU.
REPLICA_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": RAY_ENVIRONMENT["RAY_worker_niceness"],
}
#: What Ray 2.60 does many times a second on an idle machine, slower or not at all: nothing that `status`, `doctor` or
#: the metrics show is lost, it is seconds older. Of one node nobody else waits for its reports.
QUIET_RAY = {
    # Serve's counters, ten times a second in each replica and handle; Ray itself exports them every ten seconds
    # (`serve/_private/replica.py`, `router.py`).
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    # Each task's events, once a second from each process to the GCS: for `ray list tasks`, whose part of the dashboard
    # is not started here (`ray_head.py`). 0 is off (`src/ray/common/ray_config_def.h`, as are the next two).
    "RAY_task_events_report_interval_ms": "0",
    # The raylet's looks at its objects' memory and at what to tell the GCS, ten times a second each.
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_raylet_report_resources_period_milliseconds": "500",
    # Ray's agents look at their parent 2.5 times a second, and end when five looks missed it: now after 5 s. What is
    # left of a Ray is ended by `modelfleet down` and by the next start (`_private/process_watcher.py`).
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "1",
    "RAY_RUNTIME_ENV_AGENT_CHECK_PARENT_INTERVAL_S": "1",
    # The agent's own thread for events that nobody here asks for (`dashboard/modules/aggregator`).
    "RAY_DASHBOARD_AGGREGATOR_AGENT_CHECK_MAIN_THREAD_LIVENESS_INTERVAL_SECONDS": "5",
    # CPU, memory and disk of each process, read through psutil (`dashboard/modules/reporter`), and the dashboard's own.
    "REPORTER_UPDATE_INTERVAL_MS": "15000",
    "METRICS_RECORD_INTERVAL_S": "30",
    # What no node can take, which the doctor reads; no node is ever added here (`autoscaler/_private/constants.py`).
    "AUTOSCALER_UPDATE_INTERVAL_S": "15",
}


def straight_to_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """`no_proxy` in both spellings with this machine's own addresses, where `environment` has a proxy; else nothing.

    boto3, and gRPC in Ray's processes, would ask the user's proxy for 127.0.0.1.
    """
    if not any(name.lower() in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy") for name in environment):
        return {}
    kept = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    names = list(dict.fromkeys([*filter(None, kept.split(",")), *OWN_ADDRESSES]))
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(names))


def short_folder(folder: str, role: str) -> Path:
    """A short folder for sockets: the same for every run of the stack with run-time folder `folder`.

    `modelfleet.infra.local.provider.folders` makes it, and refuses one that belongs to another user.
    """
    digest = hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:8]
    name = f"modelfleet-{os.getuid()}-{digest}-{role}"
    chosen = Path(tempfile.gettempdir()) / name
    return chosen if len(str(chosen)) <= MAX_LENGTH else Path("/tmp") / name  # noqa: S108 - checked when it is made


def replica_ports(serve_port: int) -> tuple[int, int]:
    """First and last port of this stack's replicas: below the system's own range, different for each stack.

    No setting is needed, because Serve skips a taken port. The gateway asks each port which application it serves.
    """
    first = 20000 + serve_port * REPLICA_PORTS % (312 * REPLICA_PORTS)
    return first, first + REPLICA_PORTS - 1


def usage_folder(folder: Path) -> Path:
    """Where the replicas of the stack with run-time folder `folder` write what was used; `down` leaves it."""
    return folder.resolve().parents[1] / "usage" / folder.name


def queues_file(folder: str) -> Path:
    """Where the gateway of the stack with run-time folder `folder` writes the address of its `/queues`, `host:port`."""
    return Path(folder).resolve() / "gateway-queues"


def serve_environment(serve_port: int) -> dict[str, str]:
    """Ray Serve's settings: replicas listen themselves, and the application runs in the event loop that serves it.

    A streamed request of 32 tokens then costs a tenth of the CPU time of Serve's Python proxy (docs/benchmarks.md).
    Serve's own HAProxy mode would do the same, but opens ports on all of the machine's addresses.
    """
    first, last = replica_ports(serve_port)
    return {
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(last),
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # The gateway sees within two seconds that a replica leaves.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        # The default, ten times a second, costs 3 % of a core on an idle machine.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    }


def gateway_runtime(folder: str, port: int, metrics_port: int, serve_port: int | None = None) -> Runtime:
    """Addresses and folders of the stack's gateway; with `serve_port` it connects straight to replicas."""
    sockets, own = short_folder(folder, "gw"), str(Path(folder).resolve() / "gateway")
    return Runtime(
        bind=f"127.0.0.1:{port}",
        folder=own if PLAIN.fullmatch(own) else str(sockets / "files"),
        run_folder=str(sockets),
        key_map=str(sockets / "keys.map"),
        metrics_bind=f"127.0.0.1:{metrics_port}",
        threads=1,
        replica_ports=None if serve_port is None else replica_ports(serve_port),
        ca_file=authorities(),
    )


def authorities() -> str:
    """The file of the authorities that this machine trusts, as its Python or its system has it.

    Where neither has one HAProxy ends at its start and names this file, if it needs one at all. Its own `@system-ca` is
    nowhere in the wheel that Ray brings, which was built for a folder that is gone.
    """
    places = (ssl.get_default_verify_paths().cafile, *AUTHORITIES)
    return next((one for one in places if one and Path(one).is_file()), AUTHORITIES[0])
