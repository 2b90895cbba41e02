"""The Pulumi CLI: finding it, getting it, and the `pulumi` command that `make tools` puts into the environment."""
