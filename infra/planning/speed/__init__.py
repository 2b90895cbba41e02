"""How fast a replica answers: an estimate from the GPUs' peaks, fitted factors and the load. Pure arithmetic.

`server_with` makes a `Server` of an accelerator's name, `estimate_speed` says what its clients see under a `Load`.
`steps` has the seconds of one engine step, `serving` many clients, `estimate` ranges and words. Facts and factors are
`infra/catalog/speed-*.csv`; `python -m tools.speed` fits and checks them (docs/planning.md, "How fast is it?").
"""

from modelfleet.infra.planning.speed.estimate import (
    Range,
    SpeedEstimate,
    estimate_speed,
    measurement_of,
    server_with,
)
from modelfleet.infra.planning.speed.inputs import Load, Server, SpeedShape, WeightFormat
from modelfleet.infra.planning.speed.serving import Speed, serve

__all__ = [
    "Load",
    "Range",
    "Server",
    "Speed",
    "SpeedEstimate",
    "SpeedShape",
    "WeightFormat",
    "estimate_speed",
    "measurement_of",
    "serve",
    "server_with",
]
