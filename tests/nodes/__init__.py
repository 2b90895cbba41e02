"""A package, so that its fixtures of that scope end with it: one machine has no memory for its replicas and others."""
