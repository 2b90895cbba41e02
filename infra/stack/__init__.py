"""The stack file: `stacks/Pulumi.<env>.yaml` as one typed, validated model."""

from infra.stack.load import LoadedStack, load_stack, stack_file
from infra.stack.schema import Pool, StackConfig

__all__ = ["LoadedStack", "Pool", "StackConfig", "load_stack", "stack_file"]
