"""From model files and a stack file to one `Plan`: pure functions, no I/O, no Pulumi."""

from modelfleet.infra.planning.plan import Plan
from modelfleet.infra.planning.planner import plan

__all__ = ["Plan", "plan"]
