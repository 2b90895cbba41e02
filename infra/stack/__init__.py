"""The stack file: `stacks/Pulumi.<env>.yaml` as one typed, validated model."""

from modelfleet.infra.stack.load import LoadedStack, Sections, load_stack, stack_file, stack_of
from modelfleet.infra.stack.schema import Cluster, NodeSize, Pool, Reserve, StackConfig, StackSchedule
from modelfleet.infra.stack.target import Target

__all__ = [
    "Cluster",
    "LoadedStack",
    "NodeSize",
    "Pool",
    "Reserve",
    "Sections",
    "StackConfig",
    "StackSchedule",
    "Target",
    "load_stack",
    "stack_file",
    "stack_of",
]
