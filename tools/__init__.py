"""Gets and runs what the machine lacks. Nothing in `infra` or `serving` imports this package."""
