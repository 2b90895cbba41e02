"""The `ray` command as a local stack runs it: `python infra/local/ray_head.py start --head …`.

Ray 2.60's own command has four habits that do not suit a small or busy machine, and no setting for any of them.
Ray is pinned; `tests/engine/test_local_stack.py` starts it this way.
"""

from __future__ import annotations

import time
from typing import Any

from ray._private import ray_constants, services, utils

PATIENCE_S = 150.0
POLL_S = 0.2

#: What the dashboard offers: Serve's applications, the node, its status. Ray runs each part of it in a process of its
#: own, which imports Ray; jobs, tasks, metrics in Grafana, Train and Data have no use here (`dashboard/head.py`).
DASHBOARD_PARTS = ("NodeHead", "ReportHead", "ServeHead")

_get_node = services.get_node
_start_process = services.start_ray_process


def get_node_with_patience(gcs_address: str, node_id: str) -> Any:
    """Ray's `get_node`, tried for longer: its caller retries without a pause for half a minute (`Node.__init__`)."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return _get_node(gcs_address, node_id)
        except RuntimeError:
            if time.monotonic() > until:
                raise
            time.sleep(POLL_S)


def start_process_with_fewer_parts(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
    """Ray's `start_ray_process`; the dashboard loads only `DASHBOARD_PARTS`."""
    if process_type == ray_constants.PROCESS_TYPE_DASHBOARD:
        command = [*command, f"--modules-to-load={','.join(DASHBOARD_PARTS)}"]
    return _start_process(command, process_type, *args, **kwargs)


def main() -> None:
    """Patches Ray, then runs its command."""
    services.get_node = get_node_with_patience
    services.start_ray_process = start_process_with_fewer_parts
    # Ray leaves out the server for `ray://` clients only where grpc is missing. Nobody uses that server here, its port
    # is fixed, and when it times out it takes all of Ray down.
    utils.get_ray_client_dependency_error = lambda: ImportError("not wanted")
    from ray.scripts.scripts import main as ray

    ray()


if __name__ == "__main__":
    main()
