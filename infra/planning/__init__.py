"""From model files and a stack file to one `Plan`: pure functions, no I/O, no Pulumi."""

from infra.planning.plan import Plan
from infra.planning.planner import plan

__all__ = ["Plan", "plan"]
