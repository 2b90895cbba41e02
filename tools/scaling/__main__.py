"""`python -m tools.scaling [SECONDS …]`: the simulator's table, for replicas that start in so many seconds."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tools.scaling.simulate import run
from tools.scaling.traces import ALL


@dataclass(frozen=True)
class Way:
    """A policy of the model file, and where requests wait."""

    name: str
    policy: str
    one_queue: bool


WAYS = (
    Way("ray_serve, a queue at each replica", "ray_serve", False),
    Way("ray_serve, one queue", "ray_serve", True),
    Way("requests, one queue", "requests", True),
)


def main(starts: list[float]) -> None:
    """Prints replica-hours and the 95th percentile of the time to first token of each way."""
    print("SIMULATED: no Serve, no engine; the policies are the real ones.")
    print(f"{'trace':<10} {'start':>6}  {'policy':<36} {'replica-hours':>13} {'p95 first token':>16}")
    for start_s in starts:
        for trace in (make() for make in ALL):
            for way in WAYS:
                outcome = run(trace, way.policy, start_s=start_s, one_queue=way.one_queue)
                figures = f"{outcome.replica_hours:>13.2f} {outcome.p95():>14.1f} s"
                print(f"{trace.name:<10} {start_s:>4.0f} s  {way.name:<36} {figures}", flush=True)


if __name__ == "__main__":
    main([float(one) for one in sys.argv[1:]] or [20.0, 60.0, 180.0])
