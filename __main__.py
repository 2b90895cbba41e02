"""The Pulumi program of this fleet."""

from modelfleet import deploy_stack

deploy_stack()
