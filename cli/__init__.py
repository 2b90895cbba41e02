"""The `modelfleet` command: check, plan, up, down, over the same functions as the Pulumi program."""
