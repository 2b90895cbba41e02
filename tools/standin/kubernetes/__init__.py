"""Stand-in for pulumi-resource-kubernetes on a real API server; used only where the real plugin is missing."""
