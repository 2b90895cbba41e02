"""Finds and installs the Pulumi CLI, and holds the `pulumi` command that `make tools` adds to the environment."""
