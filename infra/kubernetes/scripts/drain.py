"""A worker pod's preStop hook: give the node's replicas up, and hold the pod until their last request is answered.

Mounted from a ConfigMap, run by the image's Python; needs the `ray` command and /proc, nothing of this project.
Ray Serve moves replicas away from a draining node and stops them gracefully, which ends their processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

DEADLINE_SECONDS = int(os.environ.get("MODELFLEET_DRAIN_SECONDS", "840"))
POLL_SECONDS = 1.0
REPLICA = "ray::ServeReplica"


def main() -> int:
    """Drain this node; 0 also when Ray is gone already, so that the pod can end."""
    start = time.monotonic()
    if not replicas():
        return 0
    if not announce():
        return 0
    while replicas() and time.monotonic() - start < DEADLINE_SECONDS:
        time.sleep(POLL_SECONDS)
    print(f"drain: {len(replicas())} replicas left after {time.monotonic() - start:.0f} s", file=sys.stderr)
    return 0


def announce() -> bool:
    """Tell Ray's control store that this node ends; False when Ray does not answer."""
    command = ["ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the pod is ending"]
    command += ["--deadline-remaining-seconds", str(DEADLINE_SECONDS)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"drain: {error}", file=sys.stderr)
        return False
    if done.returncode:
        print(f"drain: {done.stderr[-500:]}", file=sys.stderr)
    return done.returncode == 0


def replicas(proc: Path = Path("/proc")) -> list[int]:
    """Process ids of the Serve replicas in this container."""
    found = []
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue  # it has just ended
            if title.startswith(REPLICA):
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
